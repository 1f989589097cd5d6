"""Logits of the cached lane's last rows, kept until the other lane has them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared.tally import Tally
from kvtrace.record.lanes.passes.batch import Batch
from kvtrace.record.lanes.paths import Node
from kvtrace.trace import LogitDiff

MAX_BYTES = 512 << 20
"""Logits kept; those of later steps are not compared."""

_SAME = 0.02
"""Of the largest number: logits of one row are no farther apart in half precision."""

_FARTHER = 4
"""So many times farther those of another row are."""


class KeptLogits:
    """Last-row logits by step, [sequences, vocab]."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def keep(self, step: int, logits: Tensor | None) -> None:
        """Copy the last row of each sequence: callers change logits in place.

        Args:
            step: Number of the step.
            logits: [sequences, rows, vocab].
        """
        if logits is None or self._bytes >= MAX_BYTES:
            return
        last = logits[:, -1].detach().to("cpu", copy=True)
        self._kept[step] = last
        self._bytes += last.nbytes

    def has(self, step: int) -> bool:
        """Whether those of a step are kept."""
        return step in self._kept

    def compare(self, step: int, sequence: int, lane: Tensor) -> LogitDiff | None:
        """Compare one sequence's last row.

        Args:
            step: Number of the step.
            sequence: Row of its batch.
            lane: The other lane's, [vocab].
        """
        kept = self._kept.get(step)
        if kept is None or sequence >= len(kept) or kept.shape[-1] != lane.shape[-1]:
            return None
        cached = kept[sequence].to(lane.dtype)
        best = torch.topk(cached, min(2, cached.numel()))
        margin, first = float(best.values[0] - best.values[-1]), int(best.indices[0])
        # of tokens that are equally likely either may be called the best: the same one, then
        other = first if bool(lane[first] >= lane.max()) else int(lane.argmax())
        return LogitDiff(float((cached - lane).abs().max()), margin, first, other)

    def apart(self, step: int, sequence: int, lane: Tensor) -> float | None:
        """How far the other lane's logits, [vocab], are from a step's, of the largest number."""
        kept = self._kept.get(step)
        if kept is None or sequence >= len(kept) or kept.shape[-1] != lane.shape[-1]:
            return None
        cached = kept[sequence].to(lane.dtype)
        return float((cached - lane).abs().max() / cached.abs().max().clamp_min(1e-9))

    def drop(self, step: int) -> None:
        """Forget a step."""
        gone = self._kept.pop(step, None)
        if gone is not None:
            self._bytes -= gone.nbytes


def compare_logits(
    kept: KeptLogits,
    forward: Forward,
    batch: Batch,
    here: Mapping[int, Sequence[tuple[int, Node]]],
    tally: Tally,
) -> None:
    """Enter the logits of each step's last row.

    Args:
        kept: The cached lane's.
        forward: The lane's.
        batch: What it ran over.
        here: Step to (place in the batch, node).
        tally: Holds these steps.
    """
    if forward.logits is None:
        return
    rows: Sequence[int] = range(batch.rows) if batch.keep is None else batch.keep
    if forward.logits.shape[1] != len(rows):
        rows = _rows_given(kept, forward.logits, batch, here)
    place_of = {row: place for place, row in enumerate(rows)}
    for number, nodes in here.items():
        for place, node in nodes:
            row, path = place_of.get(node.end - 1), batch.paths[place]
            if row is None or node.end <= path.padding or not path.compares(number):
                continue
            lane = forward.logits[place, row].detach().cpu()
            found = kept.compare(number, node.sequence, lane)
            if found is not None:
                tally.logits[tally.place[number]][node.sequence] = found


def _rows_given(
    kept: KeptLogits,
    logits: Tensor,
    batch: Batch,
    here: Mapping[int, Sequence[tuple[int, Node]]],
) -> Sequence[int]:
    """Whose rows' logits a pass gave that gave fewer than it was given rows: mostly the last ones.

    A model that is told which row is wanted was told so of a prompt, and says of that one again
    what it said then. What it says of the last row it can't have said of an earlier one.
    """
    last = batch.rows - 1
    if logits.shape[1] == 1:
        found = [
            (apart, node.end - 1)
            for number, nodes in here.items()
            for place, node in nodes
            if (apart := kept.apart(number, node.sequence, logits[place, 0].cpu())) is not None
        ]
        best, row = min(found, default=(1.0, last))
        if best < _SAME and all(best < apart / _FARTHER for apart, other in found if other == last):
            return [row]
    return range(batch.rows - logits.shape[1], batch.rows)
