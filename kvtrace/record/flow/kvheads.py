"""kv heads that were repeated for every query head, taken together again."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kvtrace.record.flow.prove import FlowCall


def unrepeated(call: FlowCall) -> FlowCall:
    """Keys and values without repetition, where heads h and h+1 … hold the very same rows.

    Only `repeat_interleave` order is taken together: kv head = head // group, as everywhere here.
    """
    heads = call.keys.shape[1]
    if heads != call.values.shape[1]:
        return _widened(call)
    for group in (n for n in range(heads, 1, -1) if heads % n == 0):
        if _same(call.keys, group) and _same(call.values, group):
            keys, values = call.keys[:, ::group], call.values[:, ::group]
            return replace(call, keys=keys, values=values)
    return call


def _widened(call: FlowCall) -> FlowCall:
    """Keys and values with the same number of kv heads; one side may lack an axis."""
    heads = max(call.keys.shape[1], call.values.shape[1])
    both = (rows.repeat_interleave(heads // rows.shape[1], 1) for rows in (call.keys, call.values))
    keys, values = both
    return replace(call, keys=keys, values=values)


def _same(rows: Tensor, group: int) -> bool:
    """Whether every `group` heads are equal; the newest row is looked at first, it is cheap."""
    return _equal(rows[:, :, -1:], group) and _equal(rows, group)


def _equal(rows: Tensor, group: int) -> bool:
    batch, heads, *rest = rows.shape
    grouped = rows.reshape(batch, heads // group, group, *rest)
    return bool((grouped[:, :, 1:] == grouped[:, :, :1]).all())
