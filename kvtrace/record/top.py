"""The highest logits after a forward, with what their probabilities need."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvtrace.trace import TopLogits

TOP = 20
_GROUP = 64
"""Logits looked at together: the best are among the groups whose best is among the best."""


_SAFE = 60.0
"""Σ exp of a whole vocabulary of such logits neither overflows nor vanishes in float32."""


class TopReader:
    """Reads the highest logits; keeps one row of scratch memory, which is dear to allocate."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0)

    @torch.no_grad()
    def read(self, logits: Tensor | None, sequences: int) -> tuple[TopLogits, ...]:
        """Of the last row, per sequence, highest first; empty if there are none.

        Args:
            logits: [sequences, rows, vocab].
            sequences: Rows of the batch; logits of another number are not taken.
        """
        if logits is None or logits.dim() != 3 or logits.shape[0] != sequences:
            return ()
        if not logits.shape[1]:
            return ()
        return tuple([self._read(row.float()) for row in logits.detach()[:, -1]])

    def _read(self, row: Tensor) -> TopLogits:
        """Of one row, [vocab]."""
        ids, values = _highest(row)
        return TopLogits(tuple(ids), tuple(values), self._logsumexp(row, values[0]))

    def _logsumexp(self, row: Tensor, highest: float) -> float:
        """Log Σ exp(logit); the highest one is taken out of the sum where it must be."""
        if not math.isfinite(highest):
            return float(torch.logsumexp(row, 0))
        scratch = self._scratch
        if scratch.shape != row.shape or scratch.device != row.device:
            scratch = self._scratch = torch.empty_like(row)
        if abs(highest) < _SAFE:
            return math.log(float(torch.exp(row, out=scratch).sum()))
        torch.sub(row, highest, out=scratch)
        return highest + math.log(float(scratch.exp_().sum()))


def _highest(row: Tensor) -> tuple[list[int], list[float]]:
    """Ids and logits of the best, highest first."""
    groups = row.shape[0] // _GROUP
    if groups < 4 * TOP:
        best = torch.topk(row, min(TOP, row.shape[0]))
        return best.indices.tolist(), best.values.tolist()
    # a full topk costs more than all the rest of a step of a small model
    grouped = row[: groups * _GROUP].view(groups, _GROUP)
    chosen = grouped.amax(dim=1).topk(TOP).indices
    rest = row[groups * _GROUP :]
    best = torch.cat([grouped.index_select(0, chosen).view(-1), rest]).topk(TOP)
    places, starts, after = best.indices.tolist(), chosen.tolist(), TOP * _GROUP
    ids = [
        starts[place // _GROUP] * _GROUP + place % _GROUP
        if place < after
        else groups * _GROUP + place - after
        for place in places
    ]
    return ids, best.values.tolist()
