"""Queries of zeros in front of those that a step computed: they stand for tokens of earlier steps.

Some code computes the query of the newest token alone, and puts zeros in front of it, so that there
are as many queries as keys. Nobody reads what comes of those rows: what later layers have of
earlier tokens is from their own caches. Kept, they would be held against queries of these tokens.
"""

from __future__ import annotations

from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.call import aside
from kvtrace.record.flow.calls.prove import FlowCall

LEFT_OUT = (
    "zeros stand in the place of queries of earlier tokens, and what comes of them is not recorded"
)


def computed(call: FlowCall, path: str, notes: dict[str, None]) -> FlowCall:
    """A call with the queries alone that were computed.

    Args:
        call: Rows whose keys are zero as well are padding: they stay.
        path: Of its module.
        notes: Are told where any was left out.
    """
    new, seq = call.queries.shape[2], call.keys.shape[2]
    if not 1 < new == seq or not call.queries.numel():
        return call
    with aside(call.queries, call.keys):
        if bool(call.queries[0, 0, 0].any()):
            return call  # most have none: one row tells
        told = call.queries.any(dim=-1).any(dim=1).any(dim=0)
        rows = int(told.int().argmax())
        if not rows or not bool(call.keys[:, :, :rows].any(dim=-1).any(dim=1).all()):
            return call
        notes[f"{path}: {LEFT_OUT}"] = None
        return replace(
            call,
            queries=call.queries[:, :, rows:],
            output=call.output[:, :, rows:],
            visible=_behind(call.visible, rows),
            bias=_behind(call.bias, rows),
            weights=_behind(call.weights, rows),
        )


def _behind(table: Tensor | None, rows: int) -> Tensor | None:
    """Of a table [..., new, seq], what is of later queries; one row that is of all stays."""
    return table if table is None or table.shape[-2] == 1 else table[..., rows:, :]
