"""TILE frames: copies of 64 decoded cells, so that a long prefix is read in few pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.files.extents import INLINE_ROWS, Extent, Stacked, StepRows, most_rows
from kvtrace.trace import Meta, Step, Tensor, dtypes
from kvtrace.trace.dtypes import Array

CELLS_PER_TILE = 64


class TilePlace(Struct, frozen=True, omit_defaults=True):
    """Which cells a tile copies: `count` from `first_cell`, of each of `layers`."""

    layers: tuple[int, ...]
    first_cell: int
    count: int


class Tile(Struct, frozen=True, eq=False):
    """A tile ready to be written; its units are a head each: layer by layer, K then V."""

    place: TilePlace
    units: list[Array]


class TileLayout:
    """Where the rows of each layer are in the tiles of one group of cache layers."""

    __slots__ = ("_places",)

    def __init__(self, meta: Meta, layers: tuple[int, ...]) -> None:
        """Lay out the tiles.

        Raises:
            TraceError: META does not name a layer.
        """
        self._places: dict[tuple[int, Tensor], tuple[int, int, int, int, str]] = {}
        start = unit = 0
        for layer in layers:
            if not 0 <= layer < len(meta.cache_layers):
                raise TraceError(f"copied rows of cache layer {layer}, which META does not name.")
            store = meta.cache_layers[layer]
            for tensor, dim in ((Tensor.KEYS, store.key_dim), (Tensor.VALUES, store.value_dim)):
                heads = store.num_kv_heads
                self._places[layer, tensor] = (start, unit, heads, dim, store.dtype)
                start, unit = start + heads * dim * dtypes.itemsize(store.dtype), unit + heads

    def extent(self, layer: int, tensor: Tensor, count: int) -> Extent:
        """The rows of one layer in a tile of `count` cells, [1, kv_heads, count, dim]."""
        start, unit, heads, dim, dtype = self._places[layer, tensor]
        shape = (1, heads, count, dim)
        return Extent(tensor, layer, shape, dtype, start * count, unit, split=True)


class _Pending:
    """Cells of a group of layers that have no tile yet, in one array for each layer and tensor."""

    __slots__ = ("_wholes", "arrays", "count", "first")

    def __init__(self, first: int, rows: StepRows, layers: tuple[int, ...]) -> None:
        self.first, self.count = first, 0
        self._wholes: list[Array] = []
        stacks = _stacks(rows, layers)
        if stacks:
            for stack in stacks:
                _, _, heads, _, dim = stack.shape
                self._wholes.append(
                    np.empty((len(layers), heads, CELLS_PER_TILE, dim), stack.dtype)
                )
            keys, values = self._wholes
            self.arrays = [array for both in zip(keys, values, strict=True) for array in both]
            return
        self.arrays = [
            np.empty((array.shape[1], 0, array.shape[3]), array.dtype)
            for layer in layers
            for array in (rows.keys[layer], rows.values[layer])
        ]

    def add(self, rows: StepRows, layers: tuple[int, ...], cells: int) -> None:
        """Copy a step's cells: [sequences, heads, rows, dim], sequence by sequence."""
        end = self.count + cells
        stacks = _stacks(rows, layers) if self._wholes and cells == 1 else []
        if stacks:
            for whole, stack in zip(self._wholes, stacks, strict=True):
                whole[:, :, self.count] = stack[:, 0, :, 0]
            self.count = end
            return
        place = 0
        for layer in layers:
            for array in (rows.keys[layer], rows.values[layer]):
                held = self.arrays[place]
                if end > held.shape[1]:
                    held = self.arrays[place] = _longer(held, max(end, CELLS_PER_TILE))
                    self._wholes = []
                if len(array) == 1:
                    held[:, self.count : end] = array[0]
                else:
                    heads, dim = held.shape[0], held.shape[2]
                    held[:, self.count : end] = array.swapaxes(0, 1).reshape(heads, cells, dim)
                place += 1
        self.count = end


def _stacks(rows: StepRows, layers: tuple[int, ...]) -> list[Array]:
    """Keys and values of these layers, where they lie in one array each."""
    keys, values = rows.keys, rows.values
    if not (isinstance(keys, Stacked) and isinstance(values, Stacked)):
        return []
    return [keys.whole, values.whole] if keys.indices == values.indices == layers else []


def _longer(array: Array, cells: int) -> Array:
    longer: Array = np.empty((array.shape[0], cells, array.shape[2]), array.dtype)
    longer[:, : array.shape[1]] = array
    return longer


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
        keys: Mapping[int, Array] = rows.keys
        for one in step.caches:
            layers = one.layers
            if not (isinstance(keys, Stacked) and keys.indices == layers):
                layers = tuple([layer for layer in layers if layer in keys])
            if not one.rows or not layers:
                continue
            pending = self._pending.get(layers)
            if pending is None or pending.first + pending.count != one.first_cell:
                pending = self._pending[layers] = _Pending(one.first_cell, rows, layers)
            pending.add(rows, layers, one.rows * len(one.attended))
            if pending.count >= CELLS_PER_TILE:
                del self._pending[layers]
                yield _tile(layers, pending)


def _tile(layers: tuple[int, ...], pending: _Pending) -> Tile:
    units = [head[: pending.count] for array in pending.arrays for head in array]
    return Tile(TilePlace(layers, pending.first, pending.count), units)
