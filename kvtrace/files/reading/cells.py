"""KEYS and VALUES of consecutive cells: from TILE frames where there are, else from the steps.

Reads go straight into the answer; a damaged tile costs only its speed, as the steps hold the
same rows.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from kvtrace.errors import TraceError
from kvtrace.files.extents import Extent
from kvtrace.files.layout import Kind
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.frames import Frame
from kvtrace.files.reading.rows import RowReader
from kvtrace.files.reading.steps import StepReader
from kvtrace.files.reading.units import UnitReader
from kvtrace.files.tables import Table
from kvtrace.files.tiles import TileLayout
from kvtrace.trace import WRITES, CacheLayer, Tensor, dtypes
from kvtrace.trace.dtypes import Array


class _Known(Struct):
    """Where the cells of one cache layer are; grows with the file.

    Attributes:
        writes: Which step wrote which.
        starts: Their first cells.
        writes_seen, frames_seen: Rows of the catalog's tables that are in here.
        tiles: First cell, number of cells, group and offset of each TILE frame.
        tile_starts: Their first cells.
    """

    writes: Table = field(default_factory=lambda: Table(WRITES))
    starts: list[int] = field(default_factory=list)
    writes_seen: int = 0
    frames_seen: int = 0
    tiles: list[tuple[int, int, int, int]] = field(default_factory=list)
    tile_starts: list[int] = field(default_factory=list)


class _Wanted(Struct, frozen=True, eq=False):
    """What was asked for, and the array that it is read into.

    Attributes:
        store: The cache layer.
        tensor: KEYS or VALUES.
        head: Only this kv head, or None.
        first: First cell.
        out: [kv_heads or 1, count, dim].
    """

    store: CacheLayer
    tensor: Tensor
    head: int | None
    first: int
    out: Array


class CellReader:
    """Consecutive cells of cache layers."""

    __slots__ = ("_catalog", "_known", "_rows", "_steps", "_tile_layouts", "_units")

    def __init__(
        self, catalog: Catalog, steps: StepReader, rows: RowReader, units: UnitReader
    ) -> None:
        self._catalog, self._steps, self._rows, self._units = catalog, steps, rows, units
        self._known: dict[int, _Known] = {}
        self._tile_layouts: dict[int, TileLayout] = {}

    def writes(self, layer: int) -> NDArray[np.void]:
        """Which step wrote which cells of a cache layer, ascending."""
        return self._look_for_more(layer).writes.rows

    def _look_for_more(self, layer: int) -> _Known:
        known = self._known.setdefault(layer, _Known())
        groups = self._catalog.groups.having(layer)
        rows = self._catalog.writes.rows[known.writes_seen :]
        if len(rows):
            known.writes_seen += len(rows)
            mine = rows[np.isin(rows["group"], groups)]
            out = np.empty(len(mine), WRITES)
            for name in ("step", "first_cell", "rows", "sequences"):
                out[name] = mine[name]
            known.writes.extend(out)
            known.starts += out["first_cell"].tolist()
        frames = self._catalog.frames.rows[known.frames_seen :]
        if len(frames):
            known.frames_seen += len(frames)
            tiles = frames[(frames["kind"] == Kind.TILE) & np.isin(frames["group"], groups)]
            columns = [tiles[name].tolist() for name in ("cell", "part", "group", "offset")]
            known.tiles += list(zip(*columns, strict=True))
            known.tile_starts += columns[0]
        return known

    def cells(self, layer: int, tensor: Tensor, first: int, count: int, head: int | None) -> Array:
        """Consecutive cells, [kv_heads, count, dim]; with `head`, one. See `Source.cells`.

        Raises:
            TraceError: They are damaged, or not in this trace.
        """
        store = self._catalog.meta.cache_layers[layer]
        dim = store.dim(tensor)
        heads = store.num_kv_heads if head is None else 1
        known = self._look_for_more(layer)
        self._check_range(known, store, dim, first, count)
        out: Array = np.empty((heads, count, dim), dtypes.storage(store.dtype))
        wanted = _Wanted(store, tensor, head, first, out)
        done = 0 if out.size else count
        while done < count:
            done += self._from_tile(known, wanted, done) or self._from_step(known, wanted, done)
        return out

    def _check_range(
        self, known: _Known, store: CacheLayer, dim: int, first: int, count: int
    ) -> None:
        """Cells that were written, and no more bytes than the file can hold."""
        last = known.writes.rows[-1] if len(known.writes) else None
        end = 0
        if last is not None:
            end = int(last["first_cell"]) + int(last["rows"]) * int(last["sequences"])
        stored = count * store.num_kv_heads * dim * dtypes.itemsize(store.dtype)
        if not 0 <= first <= first + count <= end or stored > self._catalog.file.size():
            raise TraceError(
                f"{self._steps.name}: cache layer {store.index}: cells {first} to {first + count} "
                f"were asked for, the trace has {end}."
            )

    def _from_step(self, known: _Known, wanted: _Wanted, done: int) -> int:
        """Cells read from the step that wrote cell `done`, as far as one frame reaches."""
        cell, layer = wanted.first + done, wanted.store.index
        place = bisect_right(known.starts, cell) - 1
        write = known.writes.rows[max(place, 0)]
        sequence, row = divmod(cell - int(write["first_cell"]), int(write["rows"]))
        where = f"{self._steps.name}: cache layer {layer}: cell {cell}"
        if place < 0 or sequence >= int(write["sequences"]):
            raise TraceError(f"{where} was lost to damage in this file.")
        holder = self._rows.holder(int(write["step"]))
        found = self._rows.place_of_row(holder, wanted.tensor, layer, row)
        if found is not None:
            frame, extent, first_row = found
            if sequence < extent.shape[0] and row - first_row < extent.shape[2]:
                what = holder.name(wanted.tensor, layer)
                return self._copy(frame, extent, (sequence, row - first_row), wanted, done, what)
        raise TraceError(f"{where} is not recorded.")

    def _from_tile(self, known: _Known, wanted: _Wanted, done: int) -> int:
        """Cells read from the tile that copies cell `done`; 0: none does, or it is damaged."""
        cell = wanted.first + done
        place = bisect_right(known.tile_starts, cell) - 1
        if place < 0:
            return 0
        first, count, group, offset = known.tiles[place]
        if cell >= first + count:
            return 0
        layer = wanted.store.index
        if group not in self._tile_layouts:
            layers = self._catalog.groups.layers(group)
            self._tile_layouts[group] = TileLayout(self._catalog.meta, layers)
        what = f"copied cells {first} to {first + count}, cache layer {layer}"
        try:
            frame = self._steps.frame(offset, what)
            extent = self._tile_layouts[group].extent(layer, wanted.tensor, count)
            return self._copy(frame, extent, (0, cell - first), wanted, done, what)
        except TraceError:
            return 0

    def _copy(
        self,
        frame: Frame,
        extent: Extent,
        at: tuple[int, int],
        wanted: _Wanted,
        done: int,
        what: str,
    ) -> int:
        """Copy rows of an extent from (sequence, row) `at` on into the answer; how many."""
        sequence, row = at
        _, heads, rows, dim = extent.shape
        size: int = min(rows - row, wanted.out.shape[1] - done)
        if extent.split and size == rows:
            width = wanted.out.itemsize * dim
            flat = wanted.out.reshape(-1).view(np.uint8).data
            stride = wanted.out.shape[1] * width
            starts = [head * stride + done * width for head in range(wanted.out.shape[0])]
            targets = [flat[start : start + rows * width] for start in starts]
            unit = sequence * heads + (wanted.head or 0)
            self._units.read_into(frame, extent, unit, targets, what)
            return size
        read = self._units.read(frame, extent, what, wanted.head)[sequence]
        wanted.out[:, done : done + size] = read[:, row : row + size]
        return size
