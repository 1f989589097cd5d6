"""How far two passes are apart: attention of one site in both, and rows over their size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall


def pairs(
    mine: Iterable[AttentionCall], theirs: Iterable[AttentionCall]
) -> Iterator[tuple[AttentionCall, AttentionCall]]:
    """Calls of one site in both passes, in the order of the first."""
    known = {(call.module, call.call): call for call in theirs}
    for call in mine:
        there = known.get((call.module, call.call))
        if there is not None:
            yield call, there


def relative(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest number; 0 of rows that can't be compared."""
    if mine.shape != theirs.shape or not mine.numel():
        return 0.0
    far, size = (float(one.detach().abs().max()) for one in (mine - theirs, theirs))
    return far / max(size, torch.finfo().tiny)
