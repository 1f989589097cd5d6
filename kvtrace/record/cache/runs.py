"""Lists of runs over cells: what one sequence's cache is made of. Pure arithmetic, no tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import Run
from kvtrace.trace.step import Runs


def count(runs: Runs) -> int:
    """Cells in all runs."""
    return runs[0].count if len(runs) == 1 else sum([run.count for run in runs])


def written(first_cell: int, positions: Sequence[int], slot: int) -> Runs:
    """Runs of freshly written cells, one a position; cut where positions jump."""
    if not positions:
        return ()
    new = len(positions)
    if positions[-1] - positions[0] == new - 1 and _rises(positions):
        return (Run(first_cell, new, slot, positions[0]),)
    cells = ((first_cell + i, slot + i, position) for i, position in enumerate(positions))
    return joined(cells)


def _rises(positions: Sequence[int]) -> bool:
    return all(after - before == 1 for before, after in pairwise(positions))


def joined(cells: Iterable[tuple[int, int, int]]) -> Runs:
    """Runs of (cell, slot, position), merged where all three go on by one."""
    out: list[Run] = []
    for cell, slot, position in cells:
        if out:
            last = out[-1]
            after = (last.cell + last.count, last.slot + last.count, last.position + last.count)
            if (cell, slot, position) == after:
                out[-1] = Run(last.cell, last.count + 1, last.slot, last.position)
                continue
        out.append(Run(cell, 1, slot, position))
    return tuple(out)


def appended(runs: Runs, more: Runs) -> Runs:
    """The runs, then more in the slots that follow; the seam merged."""
    return joint(runs, renumbered(more, count(runs)))


def joint(runs: Runs, more: Runs) -> Runs:
    """The runs, then those in the slots that follow; the seam merged."""
    if runs and more:
        last, first = runs[-1], more[0]
        after = (last.cell + last.count, last.position + last.count)
        if after == (first.cell, first.position) and last.slot + last.count == first.slot:
            merged = Run(last.cell, last.count + first.count, last.slot, last.position)
            return (*runs[:-1], merged, *more[1:])
    return runs + more


def renumbered(runs: Runs, slot: int = 0) -> Runs:
    """The same cells in consecutive slots from `slot`."""
    out = []
    for run in runs:
        out.append(run if run.slot == slot else Run(run.cell, run.count, slot, run.position))
        slot += run.count
    return tuple(out)


def first(runs: Runs, rows: int) -> Runs:
    """The first `rows` cells."""
    out = []
    for run in runs:
        if rows <= 0:
            break
        take = min(run.count, rows)
        out.append(run if take == run.count else Run(run.cell, take, run.slot, run.position))
        rows -= take
    return tuple(out)


def last(runs: Runs, rows: int) -> Runs:
    """The last `rows` cells, in slots from 0."""
    skip = count(runs) - rows
    if skip <= 0:
        return renumbered(runs)
    out = []
    for run in runs:
        if skip >= run.count:
            skip -= run.count
            continue
        out.append(Run(run.cell + skip, run.count - skip, run.slot + skip, run.position + skip))
        skip = 0
    return renumbered(tuple(out))


def expanded(runs: Runs) -> list[tuple[int, int]]:
    """(cell, position) of every row, in slot order."""
    return [(run.cell + i, run.position + i) for run in runs for i in range(run.count)]


def stretches(
    cells: NDArray[np.int64], slots: NDArray[np.int64], positions: NDArray[np.int64]
) -> Runs:
    """As `joined`, of arrays, one entry a row."""
    if not len(cells):
        return ()
    steps = (np.diff(cells) != 1) | (np.diff(slots) != 1) | (np.diff(positions) != 1)
    starts = [0, *(np.flatnonzero(steps) + 1).tolist()]
    ends = [*starts[1:], len(cells)]
    return tuple(
        Run(int(cells[start]), end - start, int(slots[start]), int(positions[start]))
        for start, end in zip(starts, ends, strict=True)
    )


def picked(rows: Iterable[tuple[int, int]]) -> Runs:
    """Runs of (cell, position) pairs in slots from 0."""
    return joined((cell, slot, position) for slot, (cell, position) in enumerate(rows))


def of_slots(attended: Runs, slots: Collection[int]) -> Runs:
    """The rows of some slots, put together."""
    wanted = set(slots)
    rows = (
        (run.cell + n, run.position + n)
        for run in attended
        for n in range(run.count)
        if run.slot + n in wanted
    )
    return picked(rows)
