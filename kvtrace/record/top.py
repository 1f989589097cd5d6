"""The highest logits after a forward, with what their probabilities need."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrace.trace import TopLogits

TOP = 20
_GROUP = 64
"""Logits looked at together: the best are among the groups whose best is among the best."""


@torch.no_grad()
def top_logits(logits: Tensor | None, sequences: int) -> tuple[TopLogits, ...]:
    """Of the last row, per sequence, highest first; empty if there are none.

    Args:
        logits: [sequences, rows, vocab].
        sequences: Rows of the batch; logits of another number are not taken.
    """
    if logits is None or logits.dim() != 3 or logits.shape[0] != sequences or not logits.shape[1]:
        return ()
    return tuple(_top(row.float()) for row in logits.detach()[:, -1])


def _top(row: Tensor) -> TopLogits:
    """Of one row, [vocab]."""
    groups = row.shape[0] // _GROUP
    if groups < 4 * TOP:
        best = torch.topk(row, min(TOP, row.shape[0]))
        values, ids = best.values.tolist(), best.indices.tolist()
    else:
        # a full topk costs more than all the rest of a step of a small model
        grouped = row[: groups * _GROUP].view(groups, _GROUP)
        chosen = grouped.amax(dim=1).topk(TOP).indices
        rest = row[groups * _GROUP :]
        best = torch.cat([grouped.index_select(0, chosen).view(-1), rest]).topk(TOP)
        values, places, starts = best.values.tolist(), best.indices.tolist(), chosen.tolist()
        after = TOP * _GROUP
        ids = [
            starts[place // _GROUP] * _GROUP + place % _GROUP
            if place < after
            else groups * _GROUP + place - after
            for place in places
        ]
    return TopLogits(tuple(ids), tuple(values), float(torch.logsumexp(row, 0)))
