"""The tables of an INDEX frame: where every frame is, and every step at a glance."""

from __future__ import annotations

import numpy as np

from kvtrace.trace import Step

FRAMES = np.dtype(
    [
        ("offset", "<u8"),
        ("sequence", "<u8"),
        ("payload", "<u8"),  # bytes
        ("step", "<i8"),  # its number; -1: none
        ("cell", "<i8"),  # first cell of a TILE; -1: none
        ("json", "<u4"),  # bytes
        ("units", "<u4"),
        ("part", "<u4"),  # number of a ROWS frame within its step
        ("group", "<i4"),  # of a TILE
        ("kind", "<u2"),
        ("flags", "u1"),
        ("lane", "u1"),  # 0 cached, 1.. Meta.lanes, OF_PASS added for rows of a pass
    ]
)
"""One row a frame."""

OF_PASS = 0x80
"""Added to a frame's lane: it belongs to the pass of that number, not to the step."""

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

Group = tuple[int, ...]


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
        step.cost.cached.total,
        step.cost.recomputed.total,
        step.cost.cache_bytes,
    )


class Tables:
    """Tables that grow with the file: what the next INDEX frame says."""

    __slots__ = ("frames", "groups", "overview", "writes")

    def __init__(self) -> None:
        self.frames: list[tuple[int, ...]] = []
        self.overview: list[tuple[int, ...]] = []
        self.writes: list[tuple[int, ...]] = []
        self.groups: list[Group] = []

    def group(self, layers: Group) -> int:
        """Number of a group of cache layers."""
        if layers not in self.groups:
            self.groups.append(layers)
        return self.groups.index(layers)

    def add_step(self, step: Step) -> None:
        """Enter a step."""
        self.overview.append(overview_row(step))
        for one in step.caches:
            if one.rows:
                sequences = len(one.attended)
                number = self.group(one.layers)
                self.writes.append((step.number, one.first_cell, one.rows, sequences, number))
