"""kv heads that were repeated for every query head, taken together again."""

from __future__ import annotations

from torch import Tensor


def widened(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with the same number of kv heads; one side may lack an axis."""
    heads = max(keys.shape[1], values.shape[1])
    if keys.shape[1] == values.shape[1]:
        return keys, values
    return _to(keys, heads), _to(values, heads)


def _to(rows: Tensor, heads: int) -> Tensor:
    return rows.repeat_interleave(heads // rows.shape[1], 1)


def repeats(keys: Tensor, values: Tensor) -> int:
    """How many heads in a row hold the very same rows; 1: each has its own.

    Only `repeat_interleave` order counts: kv head = head // group, as everywhere here.
    """
    heads = keys.shape[1]
    for group in (n for n in range(heads, 1, -1) if heads % n == 0):
        if _same(keys, group) and _same(values, group):
            return group
    return 1


def _same(rows: Tensor, group: int) -> bool:
    """Whether every `group` heads are equal; the newest row is looked at first, it is cheap."""
    return _equal(rows[:, :, -1:], group) and _equal(rows, group)


def _equal(rows: Tensor, group: int) -> bool:
    batch, heads, *rest = rows.shape
    grouped = rows.reshape(batch, heads // group, group, *rest)
    return bool((grouped[:, :, 1:] == grouped[:, :, :1]).all())
