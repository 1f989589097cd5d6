"""Texts of a batch that a loop attends to one at a time: one call of several sequences again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.loops import Waiting
from kvtrace.record.flow.calls.prove import FlowCall


def are_texts(waiting: list[Waiting]) -> bool:
    """Whether calls that waited for each other are those of the texts of a batch.

    They are as many, and each has one sequence. Where all was merged into one axis, or a call has
    as many heads as there are sequences, the memory tells: texts lie one behind the other in it,
    heads and halves of heads between each other.
    """
    first = waiting[0]
    if len(waiting) != first.call.texts or any(one.path != first.path for one in waiting):
        return False
    queries = [one.call.queries for one in waiting]
    return queries[0].shape[0] == 1 or _one_behind_the_other(queries)


def _one_behind_the_other(parts: list[Tensor]) -> bool:
    """Whether tensors of the same shape are equally far slices of one memory, without overlap."""
    first, second = parts[0], parts[1]
    if len({one.untyped_storage()._cdata for one in parts}) > 1:
        return False
    far = second.storage_offset() - first.storage_offset()
    size = 1 + sum((n - 1) * stride for n, stride in zip(first.shape, first.stride(), strict=True))
    starts = [one.storage_offset() for one in parts]
    steps = {late - early for early, late in pairwise(starts)}
    return far >= size and steps == {far}


def abreast(waiting: list[Waiting]) -> Waiting:
    """The texts as sequences of one call; visibility and bias are given of each if they differ."""
    calls = [_alone(one.call) for one in waiting]
    first = calls[0]

    def joined(of: Callable[[FlowCall], Tensor]) -> Tensor:
        return torch.cat([of(call) for call in calls])

    call = replace(
        first,
        queries=joined(lambda call: call.queries),
        keys=joined(lambda call: call.keys),
        values=joined(lambda call: call.values),
        output=joined(lambda call: call.output),
        visible=_of_each([call.visible for call in calls], first, fill=True),
        bias=_of_each([call.bias for call in calls], first, fill=0.0),
    )
    return replace(waiting[0], call=call)


def _alone(call: FlowCall) -> FlowCall:
    """A call as that of one sequence: what was taken for several of them are its heads."""
    if call.queries.shape[0] == 1:
        return call
    groups = call.queries.shape[:2]
    rows = {
        name: getattr(call, name).flatten(0, 1)[None]
        for name in ("queries", "keys", "values", "output")
    }
    tables = {name: _of_heads(getattr(call, name), groups) for name in ("visible", "bias")}
    return replace(call, **rows, **tables)


def _of_heads(table: Tensor | None, groups: torch.Size) -> Tensor | None:
    if table is None or table.shape[:2].numel() == 1:
        return table
    return table.expand(*groups, -1, -1).flatten(0, 1)[None]


def _of_each(parts: list[Tensor | None], call: FlowCall, fill: bool | float) -> Tensor | None:
    """Masks or biases of single texts as one, without the axis of sequences where all agree."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    if len(given) == len(parts) and all(torch.equal(part, given[0]) for part in given):
        return given[0]
    heads = max(part.shape[1] for part in given)
    shape = (1, heads, call.queries.shape[2], call.keys.shape[2])
    whole = torch.full(shape, fill, dtype=given[0].dtype, device=given[0].device)
    return torch.cat([whole if part is None else part.expand(shape) for part in parts])
