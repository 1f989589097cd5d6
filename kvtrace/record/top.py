"""The highest logits after a forward, with what their probabilities need."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrace.trace import TopLogits

TOP = 20


@torch.no_grad()
def top_logits(logits: Tensor | None, sequences: int) -> tuple[TopLogits, ...]:
    """Of the last row, per sequence, highest first; empty if there are none.

    Args:
        logits: [sequences, rows, vocab].
        sequences: Rows of the batch; logits of another number are not taken.
    """
    if logits is None or logits.dim() != 3 or logits.shape[0] != sequences or not logits.shape[1]:
        return ()
    last = logits.detach()[:, -1].float()
    best = torch.topk(last, min(TOP, last.shape[-1]), dim=-1)
    sums = torch.logsumexp(last, dim=-1)
    values, ids, totals = best.values.tolist(), best.indices.tolist(), sums.tolist()
    return tuple(
        TopLogits(tuple(i), tuple(v), t) for i, v, t in zip(ids, values, totals, strict=True)
    )
