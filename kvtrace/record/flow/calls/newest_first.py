"""Keys that stand newest first, as a cache holds them that puts each new row in front."""

from __future__ import annotations

from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.call import aside
from kvtrace.record.flow.calls.prove import FlowCall


def oldest_first(call: FlowCall) -> FlowCall:
    """The same attention with its rows in the order of its tokens, as everything behind expects.

    Only a mask of several queries tells: turned round, it hides what is later. Queries of which
    the first sees the last row and not the first one can't see a text that stands in its order.
    """
    new, seq, visible = call.queries.shape[2], call.keys.shape[2], call.visible
    if visible is None or not 1 < new <= seq or tuple(visible.shape[-2:]) != (new, seq):
        return call
    with aside(call.keys, visible):
        return _turned(call, visible, seq - new)


def _turned(call: FlowCall, visible: Tensor, before: int) -> FlowCall:
    """It, where the mask says so.

    Args:
        call: It.
        visible: What its queries see.
        before: Rows that are older than the first query's own.
    """
    first = visible[..., 0, :]
    if not bool(first[..., -1].all()) or bool(first[..., 0].any()):
        return call
    turned = visible.flip(-1)
    ends = turned.diagonal(before, -2, -1)
    if bool(turned.triu(before + 1).any()) or not bool(ends.all()):
        return call
    bias = call.bias
    if bias is not None and bias.shape[-1] == visible.shape[-1]:
        bias = bias.flip(-1)
    return replace(
        call, keys=call.keys.flip(2), values=call.values.flip(2), visible=turned, bias=bias
    )
