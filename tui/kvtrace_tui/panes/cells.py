"""Consecutive cells of one head that were read: more are read when others are asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.step import Runs
from kvtrace.trace.view import cells_of

Read = Callable[[int, int], Floats]
"""(first cell, the one after the last) → their rows."""


class Cells(Struct):
    """Consecutive cells that were read: rows [..., stop - first, dim].

    Attributes:
        first: The first of them.
        rows: Of all of them.
        damaged: Blocks that were asked for last, when not all cells of them can be read.
    """

    first: int
    rows: Floats
    damaged: tuple[int, int] = (0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return int(self.rows.nbytes)

    @property
    def stop(self) -> int:
        """The cell after the last."""
        return self.first + int(self.rows.shape[-2])

    def have(self, wanted: tuple[int, int]) -> bool:
        """Whether all cells from one number up to another one are here."""
        return self.first <= wanted[0] and wanted[1] <= self.stop

    def of(self, runs: Runs) -> Floats:
        """The rows of some runs, in slot order; a view where they are consecutive."""
        if len(runs) == 1:
            start = runs[0].cell - self.first
            return self.rows[..., start : start + runs[0].count, :]
        return self.rows[..., cells_of(runs) - self.first, :]


def span(runs: Runs) -> tuple[int, int]:
    """The first cell of some runs, and the one after the last."""
    return min(run.cell for run in runs), max(run.cell + run.count for run in runs)


def grown_to(
    kept: Cells | None, needed: tuple[int, int], blocks: tuple[int, int], read: Read
) -> Cells:
    """What was kept, or more of it.

    Args:
        kept: What was read before.
        needed: Cells that must be among them.
        blocks: Cells around those that are read too, if they can be.
        read: Reads cells.

    Raises:
        TraceError: Those that are needed are damaged.
    """
    if kept is not None and kept.have(blocks):
        return kept
    had = kept is not None and kept.have(needed)
    if kept is not None and had and kept.damaged == blocks:
        return kept
    try:
        return _joined(kept, blocks, read)
    except TraceError:
        # a cell beside them is damaged: that is no reason to hide these
        found = kept if kept is not None and had else _joined(kept, needed, read)
        return Cells(found.first, found.rows, blocks)


def _joined(kept: Cells | None, wanted: tuple[int, int], read: Read) -> Cells:
    """The wanted cells; those before them that were kept stay, unless there is a gap."""
    first, stop = wanted
    if kept is None or not kept.first <= first <= kept.stop:
        return Cells(first, read(first, stop))
    return Cells(kept.first, np.concatenate([kept.rows, read(kept.stop, stop)], axis=-2))
