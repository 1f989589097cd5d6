"""TILE frames: copies of 64 decoded cells, so that a long prefix is read in few pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kvtrace.files.extents import INLINE_ROWS, StepRows, most_rows
from kvtrace.trace import Step
from kvtrace.trace.dtypes import Array

CELLS_PER_TILE = 64


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Which cells a tile copies: `count` from `first_cell`, of each of `layers`."""

    layers: tuple[int, ...]
    first_cell: int
    count: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile ready to be written; its parts are K then V of each layer, unit by unit a head."""

    place: TilePlace
    parts: list[Array]

    @property
    def layers(self) -> tuple[int, ...]:
        """Its cache layers."""
        return self.place.layers


@dataclass(slots=True)
class _Pending:
    """Cells of a group of layers that have no tile yet: [layer][k|v] lists of [heads, n, dim]."""

    first: int
    count: int = 0
    rows: list[list[Array]] = field(default_factory=list)


class Tiler:
    """Collects the cells of short steps and hands out a tile at every 64th."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: dict[tuple[int, ...], _Pending] = {}

    def add(self, step: Step, rows: StepRows) -> Iterator[Tile]:
        """Take in a step; tiles that are complete."""
        if most_rows(step) > INLINE_ROWS:
            self._pending.clear()
            return
        for one in step.caches:
            layers = tuple(layer for layer in one.layers if layer in rows.keys)
            if not one.rows or not layers:
                continue
            pending = self._pending.get(layers)
            if pending is None or pending.first + pending.count != one.first_cell:
                pending = self._pending[layers] = _Pending(
                    one.first_cell, rows=[[] for _ in range(2 * len(layers))]
                )
            for place, layer in enumerate(layers):
                pending.rows[2 * place].append(_cells(rows.keys[layer]))
                pending.rows[2 * place + 1].append(_cells(rows.values[layer]))
            pending.count += one.rows * len(one.attended)
            if pending.count >= CELLS_PER_TILE:
                del self._pending[layers]
                yield _tile(layers, pending)


def _cells(rows: Array) -> Array:
    """[sequences, heads, rows, dim] as cells, [heads, sequences · rows, dim], copied."""
    sequences, heads, count, dim = rows.shape
    return rows.transpose(1, 0, 2, 3).reshape(heads, sequences * count, dim).copy()


def _tile(layers: tuple[int, ...], pending: _Pending) -> Tile:
    parts: list[Array] = []
    for column in pending.rows:
        parts += list(np.concatenate(column, axis=1))
    return Tile(TilePlace(layers, pending.first, pending.count), parts)
