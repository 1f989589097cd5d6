"""The highest logits after a forward, with what their probabilities need."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvtrace.trace import TopLogits

TOP = 20
_GROUP = 64
"""Logits looked at together: the best are among the groups whose best is among the best."""

_ROWS = 64
"""More rows than these are a piece of a prompt, not tokens that were tried."""

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
        last = last_rows(logits, sequences)
        return () if last is None else tuple(self.of(last.float()))

    @torch.no_grad()
    def of(self, rows: Tensor) -> list[TopLogits]:
        """Of each of many rows, [rows, vocab] in float32."""
        ids, values = _highest(rows)
        sums = self._logsumexp(rows, [line[0] for line in values])
        lines = zip(ids, values, sums, strict=True)
        return [TopLogits(tuple(line), tuple(best), total) for line, best, total in lines]

    def _logsumexp(self, rows: Tensor, highest: list[float]) -> list[float]:
        """Log Σ exp(logit) of each row; the highest one is taken out of the sum where it must be.

        A row is summed alone, so that its sum does not depend on those beside it.
        """
        scratch = self._scratch
        if scratch.shape != rows.shape or scratch.device != rows.device:
            # made in inference mode, it could not be written to out of it, where steps may wait
            with torch.inference_mode(False):
                scratch = self._scratch = torch.empty_like(rows)
        safe = [abs(value) < _SAFE for value in highest]
        if all(safe):
            torch.exp(rows, out=scratch)
            sums = torch.stack([line.sum() for line in scratch]).tolist()
            return [math.log(total) for total in sums]
        return [
            self._alone(line, value, place)
            for place, (line, value) in enumerate(zip(rows, highest, strict=True))
        ]

    def _alone(self, row: Tensor, highest: float, place: int) -> float:
        """Of one row, [vocab]."""
        if not math.isfinite(highest):
            return float(torch.logsumexp(row, 0))
        scratch = self._scratch[place]
        if abs(highest) < _SAFE:
            return math.log(float(torch.exp(row, out=scratch).sum()))
        torch.sub(row, highest, out=scratch)
        return highest + math.log(float(scratch.exp_().sum()))


def last_rows(logits: Tensor | None, sequences: int) -> Tensor | None:
    """The logits after each sequence, [sequences, vocab]; None if there are none.

    Args:
        logits: [sequences, rows, vocab].
        sequences: Rows of the batch.
    """
    if logits is None or logits.dim() != 3 or logits.shape[0] != sequences:
        return None
    return logits.detach()[:, -1] if logits.shape[1] else None


@torch.no_grad()
def likeliest(logits: Tensor | None, sequences: int, new: int) -> tuple[tuple[int, ...], ...]:
    """The best token after each of several rows, [sequences][new]; empty if not all rows tell.

    Args:
        logits: [sequences, rows, vocab].
        sequences: Rows of the batch.
        new: Tokens that came in, of each.
    """
    if logits is None or logits.shape[:-1] != (sequences, new) or not 1 < new <= _ROWS:
        return ()
    return tuple(tuple(row) for row in logits.detach().argmax(-1).tolist())


def _highest(rows: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and logits of the best of each row, highest first."""
    count, vocab = rows.shape
    groups = vocab // _GROUP
    if groups < 4 * TOP:
        best = torch.topk(rows, min(TOP, vocab))
        return best.indices.tolist(), best.values.tolist()
    # a full topk costs more than all the rest of a step of a small model
    grouped = rows[:, : groups * _GROUP].view(count, groups, _GROUP)
    chosen = grouped.amax(dim=2).topk(TOP).indices
    near = grouped.gather(1, chosen[:, :, None].expand(-1, -1, _GROUP)).view(count, -1)
    best = torch.cat([near, rows[:, groups * _GROUP :]], dim=1).topk(TOP)
    after, all_starts = TOP * _GROUP, chosen.tolist()
    ids = [
        [
            starts[place // _GROUP] * _GROUP + place % _GROUP
            if place < after
            else groups * _GROUP + place - after
            for place in places
        ]
        for places, starts in zip(best.indices.tolist(), all_starts, strict=True)
    ]
    return ids, best.values.tolist()
