"""Which step wrote the rows that a sequence goes on with, told by the cells they are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtrace.trace import CacheStep, Step

Origin = tuple[int, int]
"""A step, and a sequence in it."""


class _Written(NamedTuple):
    """Cells of a cache layer that a step wrote: the first, how many a sequence, and the step."""

    first_cell: int
    rows: int
    step: int


@dataclass(slots=True)
class Writers:
    """Remembers who wrote which cells."""

    _written: dict[int, list[_Written]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Remember what a step wrote."""
        for group in step.caches:
            if group.rows:
                wrote = _Written(group.first_cell, group.rows, step.number)
                self._written.setdefault(group.layers[0], []).append(wrote)

    def joined(self, step: Step) -> Sequence[Origin | None] | None:
        """Whom each sequence goes on with, where a batch was joined of several; else None."""
        group = next((one for one in step.caches if one.rows and one.attended), None)
        if group is None or len(group.attended) != step.num_sequences:
            return None
        found = [self._origin(group, sequence) for sequence in range(step.num_sequences)]
        return found if len({one[0] for one in found if one is not None}) > 1 else None

    def _origin(self, group: CacheStep, sequence: int) -> Origin | None:
        """Who wrote the last row that a sequence had before the step."""
        old = [run for run in group.attended[sequence] if run.cell < group.first_cell]
        written = self._written.get(group.layers[0], [])
        if not old or not written:
            return None
        cell = min(old[-1].cell + old[-1].count, group.first_cell) - 1
        one = written[bisect_right(written, cell, key=lambda one: one.first_cell) - 1]
        return one.step, (cell - one.first_cell) // one.rows
