"""Tables of the frames and steps of a file, as an INDEX frame stores them, and growing ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvtrace.files.layout import Head
from kvtrace.trace import Step

FRAMES = np.dtype(
    [
        ("offset", "<u8"),
        ("sequence", "<u8"),
        ("payload", "<u8"),  # bytes
        ("step", "<i8"),  # its number; -1: none
        ("cell", "<i8"),  # first cell of a TILE; -1: none
        ("part", "<u4"),  # number of a ROWS frame within its step; cells of a TILE
        ("group", "<i4"),  # of a TILE; -1: none
        ("kind", "<u2"),
        ("flags", "<u2"),
        ("lane", "<u4"),  # 0 cached, 1.. Meta.lanes
    ]
)
"""One row a frame."""

GROUP_WRITES = np.dtype(
    [
        ("step", "<i8"),
        ("first_cell", "<i8"),
        ("rows", "<i8"),
        ("sequences", "<i8"),
        ("group", "<i4"),
    ]
)
"""One row for each group of cache layers that a step wrote to."""

LARGEST = 1 << 62
"""Sums of what was recorded stop here: an int64 holds them whatever a file says."""

Group = tuple[int, ...]
Rows = Sequence[tuple[int, ...]]


def frame_row(
    offset: int,
    head: Head,
    step: int = -1,
    *,
    cell: int = -1,
    part: int = 0,
    group: int = -1,
    lane: int = 0,
) -> tuple[int, ...]:
    """A frame as a row of `FRAMES`."""
    sizes = (offset, head.sequence, head.payload_bytes)
    return (*sizes, step, cell, part, group, head.kind, head.flags, lane)


def overview_row(step: Step) -> tuple[int, ...]:
    """A step as a row of `OVERVIEW`."""
    chosen = step.chosen[0] if step.chosen else None
    return (
        step.number,
        -1 if step.parent is None else step.parent,
        int(step.phase == "decode"),
        step.num_sequences,
        step.new,
        step.tokens[0][-1] if step.new else -1,
        -1 if chosen is None else chosen,
        step.elapsed_ns,
        min(step.cost.cached.total, LARGEST),
        min(step.cost.recomputed.total, LARGEST),
        step.cost.cache_bytes,
    )


class Table:
    """Rows of one dtype that are only ever added to; adding n rows costs O(n)."""

    __slots__ = ("_held", "_rows")

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._rows: NDArray[np.void] = np.zeros(0, dtype)
        self._held = 0

    def __len__(self) -> int:
        return self._held

    @property
    def rows(self) -> NDArray[np.void]:
        """All rows so far; what was handed out does not change when more come."""
        return self._rows[: self._held]

    def extend(self, rows: NDArray[np.void] | Rows) -> None:
        """Add rows."""
        added = rows if isinstance(rows, np.ndarray) else np.array(rows, self._rows.dtype)
        end = self._held + len(added)
        if end > len(self._rows):
            larger = np.zeros(max(end, 2 * len(self._rows)), self._rows.dtype)
            larger[: self._held] = self.rows
            self._rows = larger
        self._rows[self._held : end] = added
        self._held = end


class Groups:
    """Groups of cache layers by number, in the order they were first met."""

    __slots__ = ("_groups", "_numbers")

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self._groups = list(groups)
        self._numbers = {group: number for number, group in enumerate(groups)}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, layers: Group) -> int:
        """Number of a group, a new one if it was not met before."""
        number = self._numbers.setdefault(layers, len(self._numbers))
        if number == len(self._groups):
            self._groups.append(layers)
        return number

    def layers(self, number: int) -> Group:
        """The cache layers of a group."""
        return self._groups[number]

    def having(self, layer: int) -> list[int]:
        """Numbers of the groups that a cache layer is in."""
        return [number for number, group in enumerate(self._groups) if layer in group]

    def all(self) -> Sequence[Group]:
        """Every group, by number."""
        return self._groups

    def writes(self, step: Step) -> list[tuple[int, ...]]:
        """What a step wrote, as rows of `GROUP_WRITES`."""
        return [
            (step.number, one.first_cell, one.rows, len(one.attended), self.number(one.layers))
            for one in step.caches
            if one.rows
        ]
