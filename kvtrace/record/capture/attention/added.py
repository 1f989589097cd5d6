"""Masks of booleans that eager attention adds to the scores as numbers, so that they hide nothing.

Kernels take True for "may look". Eager attention of transformers adds whatever it is given: True
adds 1 to a score, and False 0. Which of both a module did, its output tells.
"""

from __future__ import annotations

from msgspec.structs import replace

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.calls.prove import FlowCall, refusal


def as_it_was_taken(call: AttentionCall) -> AttentionCall:
    """The call with its boolean mask as what was added, where that alone explains the output.

    Args:
        call: Its `visible` is the mask.
    """
    if call.visible is None or not _refused(call):
        return call
    number = call.visible.to(call.queries.dtype)
    bias = number if call.bias is None else call.bias + number
    added = replace(call, visible=None, bias=bias)
    return call if _refused(added) else added


def _refused(call: AttentionCall) -> str:
    """Why it does not repeat what the model calculated; empty: it does."""
    plain = FlowCall(
        call.queries.detach(),
        call.keys.detach(),
        call.values.detach(),
        call.output.detach(),
        call.scale,
        call.softcap,
        call.visible,
        call.bias,
        call.sinks,
    )
    return refusal(plain)
