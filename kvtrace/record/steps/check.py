"""The self-check: what was recorded must explain what the attention made of it.

softmax(q·kᵀ·scale, softcap, bias, mask, sink)·v, in fp32 from an `AttentionCall`, against the
output of the same call. Rounding separates them by a little; a wrong scale, mask or tensor by a
lot. Calls of one shape are calculated together, long prefills by a sample of their rows. Knows
nothing of traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward

MAX_SCORES = 1 << 20
"""Scores calculated per call: more query rows than fit are sampled."""

FIRST, SPARSE = 3, 8
"""Forwards checked whole; later a single call every so many forwards, and all at powers of two."""


class SelfCheck:
    """Checks the first forwards, then ever fewer; made for one run."""

    def __init__(self) -> None:
        self._forwards = 0

    def __call__(self, forward: Forward) -> Mapping[int, tuple[float, float]]:
        """(max |error|, max |output|) by place of the call; what is left out was not checked."""
        number, self._forwards = self._forwards, self._forwards + 1
        places = chosen(number, len(forward.calls))
        if not places:
            return {}
        return check([forward.calls[place] for place in places], places)


def chosen(number: int, calls: int) -> Sequence[int]:
    """Which calls of a forward are checked.

    Args:
        number: Forwards before it.
        calls: Its calls.
    """
    if number < FIRST or number & (number - 1) == 0:
        return range(calls)
    if number % SPARSE == 0 and calls:
        place = number // SPARSE % calls
        return range(place, place + 1)
    return ()


def check(calls: Sequence[AttentionCall], places: Sequence[int]) -> dict[int, tuple[float, float]]:
    """(max |error|, max |output|) of each call; NaN where either side is."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, call in enumerate(calls):
        groups.setdefault(_alike(call), []).append(index)
    outcomes: dict[int, tuple[float, float]] = {}
    with torch.no_grad():
        for members in groups.values():
            errors, scales = _compared([calls[index] for index in members]).tolist()
            pairs = zip(errors, scales, strict=True)
            outcomes |= {places[at]: pair for at, pair in zip(members, pairs, strict=True)}
    return outcomes


def _alike(call: AttentionCall) -> tuple[object, ...]:
    """Calls with equal keys are calculated in one go."""
    tensors = (call.queries, call.keys, call.values)
    return (
        *(tuple(tensor.shape) for tensor in tensors),
        call.queries.device,
        call.queries.dtype,
        call.scale,
        call.softcap,
        call.causal,
        None if call.visible is None else id(call.visible),
        None if call.bias is None else id(call.bias),
        call.sinks is None,
        call.rule,
    )


class _Rows(Struct, frozen=True):
    """Query rows that are checked.

    Attributes:
        index: Their numbers; None: all.
        new, seq: Rows of queries and keys.
    """

    index: Tensor | None
    new: int
    seq: int

    def of(self, tensor: Tensor) -> Tensor:
        """Those rows of [.., new, dim]; a row that stands for all stays."""
        if self.index is None or tensor.shape[-2] != self.new:
            return tensor
        return tensor.index_select(tensor.dim() - 2, self.index)


def _sampled(call: AttentionCall) -> _Rows:
    sequences, heads, new, _ = call.queries.shape
    seq = call.keys.shape[2]
    room = max(2, MAX_SCORES // max(1, sequences * heads * seq))
    if room >= new:
        return _Rows(None, new, seq)
    index = torch.linspace(0, new - 1, room, device=call.queries.device).round().long()
    return _Rows(index, new, seq)


def _compared(calls: Sequence[AttentionCall]) -> Tensor:
    """[2, calls]: max |error| and max |output|."""
    first = calls[0]
    rows = _sampled(first)
    output = torch.stack([rows.of(call.output) for call in calls]).float()
    expected, sees = _attention(calls, rows)
    error = (expected - output).abs()
    if sees is not None:
        # what a query that sees nothing attends to is nobody's promise
        error = torch.where(sees, error, 0)
    return torch.stack([error.flatten(1).amax(1), output.abs().flatten(1).amax(1)]).cpu()


def _attention(calls: Sequence[AttentionCall], rows: _Rows) -> tuple[Tensor, Tensor | None]:
    """The attention of calls of one shape, in fp32.

    Returns:
        [calls, sequences, heads, rows, value_dim], and which queries see anything, broadcasting to
        it; None: all.
    """
    first = calls[0]
    queries = torch.stack([rows.of(call.queries) for call in calls]).float()
    keys = torch.stack([call.keys for call in calls]).float()
    values = torch.stack([call.values for call in calls]).float()
    number, sequences, heads, checked, dim = queries.shape
    kv_heads = keys.shape[2]
    grouped = queries.reshape(number, sequences, kv_heads, heads // kv_heads * checked, dim)
    scores = (grouped @ keys.transpose(-1, -2)) * first.scale
    scores = scores.reshape(number, sequences, heads, checked, rows.seq)
    if first.softcap:
        scores = first.softcap * torch.tanh(scores / first.softcap)
    if first.bias is not None:
        scores = scores + rows.of(first.bias).float()
    visible = _visible(first, rows)
    sees = None
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
        sees = visible.any(-1, keepdim=True)
    if first.rule == "sigmoid":
        weights = scores.sigmoid()
    else:
        weights = _softmax(scores, [call.sinks for call in calls], sees)
    mixed = weights.reshape(number, sequences, kv_heads, -1, rows.seq) @ values
    return mixed.reshape(number, sequences, heads, checked, -1), sees


def _visible(call: AttentionCall, rows: _Rows) -> Tensor | None:
    """Bool, broadcasting to [sequences, heads, rows, seq]; None: everything."""
    visible = None if call.visible is None else rows.of(call.visible)
    if not call.causal:
        return visible
    query = torch.arange(rows.new, device=call.queries.device)[:, None]
    query = query if rows.index is None else query[rows.index]
    key = torch.arange(rows.seq, device=call.queries.device)[None, :]
    causal = key <= query + rows.seq - rows.new
    return causal if visible is None else causal & visible


def _softmax(scores: Tensor, sinks: Sequence[Tensor | None], sees: Tensor | None) -> Tensor:
    """Weights; a sink takes its share, and a query that sees nothing gets zeros."""
    if sinks[0] is not None:
        logits = torch.stack([sink.float() for sink in sinks if sink is not None])
        column = logits[:, None, :, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    weights = scores.softmax(-1)
    return weights if sees is None else torch.where(sees, weights, 0)
