"""A trace file as a `Source`: checked rows, read when asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kvtrace.errors import MissingError, TraceError
from kvtrace.files import codec
from kvtrace.files.catalog import Catalog
from kvtrace.files.extents import Extent, RowsOf, extents, shapes
from kvtrace.files.frames import Frame, FrameFile
from kvtrace.files.layout import Kind
from kvtrace.files.tables import OF_PASS
from kvtrace.trace import (
    CACHED,
    WRITES,
    Damage,
    Ending,
    LaneStep,
    Meta,
    Note,
    Step,
    Tensor,
    dtypes,
)
from kvtrace.trace.dtypes import Array

_STEPS_KEPT = 256
_FRAMES_KEPT = 1024
K, V = TypeVar("K"), TypeVar("V")


class _Kept(OrderedDict[K, V]):
    """The newest entries of something expensive."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def get_or(self, key: K, make: Callable[[], V]) -> V:
        if key in self:
            self.move_to_end(key)
            return self[key]
        self[key] = value = make()
        if len(self) > self._limit:
            self.popitem(last=False)
        return value


class FileSource:
    """Implements `kvtrace.trace.Source` over one file."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            TraceError: It is no trace, or nothing of it can be read.
            VersionError: A newer kvtrace wrote it.
        """
        self._file = FrameFile(path)
        self._catalog = Catalog(self._file)
        self._steps: _Kept[int, tuple[Step, RowsOf, int, Frame]] = _Kept(_STEPS_KEPT)
        self._frames: _Kept[int, Frame] = _Kept(_FRAMES_KEPT)
        self._passes_read: _Kept[int, tuple[Step, RowsOf, int, Frame]] = _Kept(_STEPS_KEPT)
        self._texts: dict[int, str] = {}
        self._texts_upto = 0
        self._reset_tables()

    def _reset_tables(self) -> None:
        self._numbers = sorted(self._catalog.step_frames)
        self._writes: dict[int, NDArray[np.void]] = {}
        self._starts: dict[int, list[int]] = {}
        self._tiles: dict[int, tuple[list[int], list[int]]] = {}
        self._parts: dict[tuple[int, int], list[int]] | None = None
        self._lane_frames: dict[tuple[int, int], int] | None = None
        self._passes: dict[tuple[int, int], int] | None = None

    # -- the whole file --------------------------------------------------------------------

    @property
    def name(self) -> str:
        """File name without its folder, safe to show."""
        return self._file.name

    @property
    def meta(self) -> Meta:
        """The newest META."""
        return self._catalog.known_meta()

    @property
    def notes(self) -> Sequence[Note]:
        """Notes in the order they were added."""
        return self._catalog.notes

    @property
    def ending(self) -> Ending | None:
        """How it ended; None: incomplete, or still being written."""
        return self._catalog.ending

    @property
    def damage(self) -> Sequence[Damage]:
        """What can't be read."""
        return self._catalog.damage

    def refresh(self) -> bool:
        """Look for frames that were added since."""
        changed = self._catalog.refresh()
        if changed:
            self._reset_tables()
        return changed

    def step_numbers(self) -> Sequence[int]:
        """Numbers of the steps that are there."""
        return self._numbers

    def overview(self) -> NDArray[np.void]:
        """All steps at a glance, ascending."""
        return self._catalog.overview

    # -- steps -----------------------------------------------------------------------------

    def step(self, number: int) -> Step:
        """One step.

        Raises:
            MissingError: It is not in this trace, or damaged.
        """
        return self._entry(number)[0]

    def _entry(self, number: int) -> tuple[Step, RowsOf, int, Frame]:
        return self._steps.get_or(number, lambda: self._read_entry(number))

    def _read_entry(self, number: int) -> tuple[Step, RowsOf, int, Frame]:
        try:
            frame = self._catalog.step_frame(number)
            step, recorded, parts = self._catalog.read_step(frame)
        except MissingError:
            raise
        except TraceError as error:
            self._note_damage(str(error), 0)
            raise MissingError(f"{self.name}: step {number} is damaged: {error}") from None
        if step.number != number:
            raise MissingError(f"{self.name}: step {number} is damaged: it says {step.number}.")
        return step, recorded, parts, frame

    def token_text(self, token: int) -> str | None:
        """Text of a token id; steps are read until one tells it."""
        if token in self._texts:
            return self._texts[token]
        while self._texts_upto < len(self._numbers):
            number = self._numbers[self._texts_upto]
            self._texts_upto += 1
            try:
                self._texts.update(self.step(number).texts)
            except TraceError:
                continue
            if token in self._texts:
                return self._texts[token]
        return None

    def writes(self, layer: int) -> NDArray[np.void]:
        """Which step wrote which cells of a cache layer."""
        if layer not in self._writes:
            every = self._catalog.writes
            mine = [n for n, group in enumerate(self._catalog.groups) if layer in group]
            rows: NDArray[np.void] = every[np.isin(every["group"], mine)]
            out = np.empty(len(rows), WRITES)
            for name in ("step", "first_cell", "rows", "sequences"):
                out[name] = rows[name]
            self._writes[layer] = out[np.argsort(out["first_cell"], kind="stable")]
        return self._writes[layer]

    # -- rows of sites ---------------------------------------------------------------------

    def site_rows(
        self, step: int, site: int, tensor: Tensor, lane: str, head: int | None
    ) -> Array | None:
        """QUERIES or OUTPUT of a step, [sequences, heads, new, dim]; with `head`, one head."""
        return self._tensor(step, site, tensor, lane, head)

    def _tensor(
        self, number: int, index: int, tensor: Tensor, lane: str, head: int | None
    ) -> Array | None:
        """A tensor of a step, whole or one head of it."""
        dtype = self._dtype(tensor, index, lane)
        pieces = self._pieces(number, index, tensor, lane)
        if not pieces:
            return None
        read = [self._read(frame, extent, head, dtype, number) for frame, extent in pieces]
        return read[0] if len(read) == 1 else np.concatenate(read, axis=2)

    def _pieces(
        self, number: int, index: int, tensor: Tensor, lane: str
    ) -> list[tuple[Frame, Extent]]:
        """The frames and extents that hold a tensor; empty: not recorded."""
        step, recorded, parts, frame = self._entry(number)
        dtype, before, before_units = None, 0, 0
        lane_number = 0
        if lane != CACHED:
            found = self._lane_entry(number, lane)
            if found is None:
                return []
            frame, fields, recorded, parts, before, before_units = found
            if not fields.stored:
                return []
            lane_number = self._lane_number(lane)
            dtype = self.meta.lanes[lane_number - 1].dtype
        whole = self._shapes(step, recorded, dtype)
        if not parts:
            mine = [e for e in extents(whole, None) if (e.tensor, e.index) == (tensor, index)]
            return [(frame, _moved(e, before, before_units)) for e in mine]
        out = []
        for part, offset in enumerate(self._part_offsets(number, lane_number)):
            frame = self._frame(offset)
            mine = [e for e in extents(whole, part) if (e.tensor, e.index) == (tensor, index)]
            out += [(frame, e) for e in mine]
        return out

    def _shapes(
        self, step: Step, recorded: RowsOf, dtype: str | None
    ) -> list[tuple[Tensor, int, tuple[int, int, int, int], int]]:
        try:
            return shapes(self.meta, step, recorded, dtype)
        except (IndexError, KeyError):
            raise TraceError(f"{self.name}: step {step.number} does not fit META.") from None

    def _part_offsets(self, number: int, lane: int) -> list[int]:
        if self._parts is None:
            self._parts = {}
            frames = self._catalog.frames
            rows = frames[frames["kind"] == Kind.ROWS]
            for one in rows[np.argsort(rows["part"], kind="stable")]:
                key = (int(one["step"]), int(one["lane"]))
                self._parts.setdefault(key, []).append(int(one["offset"]))
        return self._parts.get((number, lane), [])

    def _frame(self, offset: int) -> Frame:
        def read() -> Frame:
            frame = self._file.frame(offset)
            if frame is None:
                raise TraceError(f"{self.name}: the file ends inside the frame at byte {offset}.")
            return frame

        return self._frames.get_or(offset, read)

    def _read(
        self, frame: Frame, extent: Extent, head: int | None, dtype: str, number: int
    ) -> Array:
        """One extent, checked; with `head`, [sequences, 1, rows, dim]."""
        sequences, heads, rows, dim = extent.shape
        if extent.start + extent.size > frame.head.payload_bytes:
            raise TraceError(f"{self.name}: step {number}: rows are missing.")
        kind = dtypes.storage(dtype)
        if head is None or not extent.split:
            raw = self._file.read(frame.payload + extent.start, extent.size)
            self._check(raw, frame, extent, number)
            whole = np.frombuffer(raw, kind).reshape(extent.shape)
            return whole if head is None else whole[:, head : head + 1]
        size = extent.size // extent.units
        out = np.empty((sequences, 1, rows, dim), kind)
        for sequence in range(sequences):
            unit = sequence * heads + head
            raw = self._file.read(frame.payload + extent.start + unit * size, size)
            self._check_unit(raw, frame, extent.unit + unit, extent, number)
            out[sequence, 0] = np.frombuffer(raw, kind).reshape(rows, dim)
        return out

    def _check(self, raw: bytes, frame: Frame, extent: Extent, number: int) -> None:
        size = extent.size // extent.units
        view = memoryview(raw)
        for unit in range(extent.units):
            part = view[unit * size : (unit + 1) * size]
            self._check_unit(part, frame, extent.unit + unit, extent, number)

    def _check_unit(
        self, raw: bytes | memoryview, frame: Frame, unit: int, extent: Extent, number: int
    ) -> None:
        if unit >= len(frame.crcs) or crc32(raw) != frame.crcs[unit]:
            place = f"step {number}" if number >= 0 else "copied rows"
            kind = "layer" if extent.tensor in (Tensor.QUERIES, Tensor.OUTPUT) else "cache layer"
            text = f"{place}, {kind} {extent.index}, {extent.tensor.name.lower()}: damaged"
            self._note_damage(text, frame.offset)
            raise TraceError(f"{self.name}: {text} (byte {frame.offset}).")

    def _note_damage(self, text: str, offset: int) -> None:
        if all(one.text != text for one in self._catalog.damage):
            self._catalog.damage.append(Damage(text, offset))

    def _dtype(self, tensor: Tensor, index: int, lane: str) -> str:
        found = self.meta.lane(lane)
        if found is not None:
            return found.dtype
        site = tensor in (Tensor.QUERIES, Tensor.OUTPUT)
        return self.meta.sites[index].dtype if site else self.meta.cache_layers[index].dtype

    def written(self, step: int, layer: int, tensor: Tensor, lane: str) -> Array | None:
        """KEYS or VALUES that a step wrote, [sequences, kv_heads, rows, dim]."""
        return self._tensor(step, layer, tensor, lane, None)

    def lost_steps(self) -> Sequence[int]:
        """Numbers that are missing between the steps that are there."""
        there = set(self._numbers)
        return [n for n in range(max(there, default=-1) + 1) if n not in there]

    # -- cells -----------------------------------------------------------------------------

    def cells(  # noqa: PLR0913 - the address of consecutive cells
        self, layer: int, tensor: Tensor, first: int, count: int, lane: str, head: int | None
    ) -> Array | None:
        """KEYS or VALUES of consecutive cells, [kv_heads, count, dim]; with `head`, one."""
        store = self.meta.cache_layers[layer]
        dim = store.key_dim if tensor is Tensor.KEYS else store.value_dim
        heads = store.num_kv_heads if head is None else 1
        writes = self.writes(layer)
        if layer not in self._starts:
            self._starts[layer] = writes["first_cell"].tolist()
        last = writes[-1] if len(writes) else None
        end = int(last["first_cell"] + last["rows"] * last["sequences"]) if last is not None else 0
        if not 0 <= first <= first + count <= end:
            raise TraceError(
                f"{self.name}: cache layer {layer}: cells {first} to {first + count} were asked "
                f"for, the trace has {end}."
            )
        dtype = self._dtype(tensor, layer, lane)
        out = np.empty((heads, count, dim), dtypes.storage(dtype))
        done, anything = 0, False
        while done < count:
            part = self._cells_at(layer, tensor, first + done, count - done, lane, head)
            rows, found = part
            anything |= found
            out[:, done : done + rows.shape[1]] = rows
            done += rows.shape[1]
        return out if anything or not count else None

    def _cells_at(  # noqa: PLR0913 - the address of consecutive cells
        self, layer: int, tensor: Tensor, cell: int, wanted: int, lane: str, head: int | None
    ) -> tuple[Array, bool]:
        """Cells from `cell` on as far as one tile or one step reaches; whether they are there."""
        if lane == CACHED:
            tile = self._tile_at(layer, cell)
            if tile is not None:
                return self._tile_cells(tile, layer, tensor, cell, wanted, head), True
        place = bisect_right(self._starts[layer], cell) - 1
        write = self._writes[layer][place]
        rows, first = int(write["rows"]), int(write["first_cell"])
        sequence, row = divmod(cell - first, rows)
        if place < 0 or sequence >= int(write["sequences"]):
            raise TraceError(
                f"{self.name}: cache layer {layer}: cell {cell} was lost to damage in this file."
            )
        found = self._tensor(int(write["step"]), layer, tensor, lane, head)
        count = min(wanted, rows - row)
        if found is None:
            if lane == CACHED:
                raise TraceError(f"{self.name}: cache layer {layer}: cell {cell} is not recorded.")
            store = self.meta.cache_layers[layer]
            dim = store.key_dim if tensor is Tensor.KEYS else store.value_dim
            heads = store.num_kv_heads if head is None else 1
            return dtypes.missing(self._dtype(tensor, layer, lane), (heads, count, dim)), False
        return found[sequence, :, row : row + count], True

    def _tile_at(self, layer: int, cell: int) -> int | None:
        """Offset of the TILE frame that copies a cell."""
        if layer not in self._tiles:
            frames = self._catalog.frames
            tiles = frames[frames["kind"] == Kind.TILE]
            mine = [n for n, group in enumerate(self._catalog.groups) if layer in group]
            tiles = tiles[np.isin(tiles["group"], mine)]
            tiles = tiles[np.argsort(tiles["cell"], kind="stable")]
            self._tiles[layer] = (tiles["cell"].tolist(), tiles["offset"].tolist())
        cells, offsets = self._tiles[layer]
        place = bisect_right(cells, cell) - 1
        if place < 0:
            return None
        frame = self._frame(offsets[place])
        return offsets[place] if cell < cells[place] + self._tile_count(frame) else None

    def _tile_count(self, frame: Frame) -> int:
        count = codec.parse(frame.json, self.name).get("count")
        return count if type(count) is int and 0 < count <= frame.head.payload_bytes else 0

    def _tile_cells(  # noqa: PLR0913 - the address of consecutive cells
        self, offset: int, layer: int, tensor: Tensor, cell: int, wanted: int, head: int | None
    ) -> Array:
        frame = self._frame(offset)
        place = codec.parse(frame.json, self.name)
        layers, first, count = place["layers"], place["first_cell"], self._tile_count(frame)
        start = unit = 0
        for one in layers:
            for kind in (Tensor.KEYS, Tensor.VALUES):
                store = self.meta.cache_layers[one]
                dim = store.key_dim if kind is Tensor.KEYS else store.value_dim
                shape = (1, store.num_kv_heads, count, dim)
                size = dtypes.itemsize(store.dtype)
                extent = Extent(kind, one, shape, size, start, unit, split=True)
                if (one, kind) == (layer, tensor):
                    rows = self._read(frame, extent, head, store.dtype, -1)[0]
                    return rows[:, cell - first : cell - first + wanted]
                start, unit = start + extent.size, unit + extent.units
        raise TraceError(f"{self.name}: the copied rows at byte {offset} are damaged.")

    # -- masks and lanes -------------------------------------------------------------------

    def full_mask(self, step: int, site: int) -> Array | None:
        """The stored mask, uint8 [sequences|1, heads|1, new, seq]."""
        return self._beside_in(self._entry(step), site, "masks", CACHED)

    def bias(self, step: int, site: int) -> Array | None:
        """The stored bias, float32 [sequences|1, heads|1, new, seq]."""
        return self._beside_in(self._entry(step), site, "biases", CACHED)

    def _beside_in(
        self, entry: tuple[Step, RowsOf, int, Frame], site: int, which: str, lane: str
    ) -> Array | None:
        """A mask or bias: after the rows in the payload of the frame."""
        step, recorded, parts, frame = entry
        number, found = step.number, self.meta.lane(lane)
        dtype = None if found is None else found.dtype
        inline = [] if parts else extents(self._shapes(step, recorded, dtype), None)
        start, unit = sum(e.size for e in inline), sum(e.units for e in inline)
        for name, kind in (("masks", "uint8"), ("biases", "float32")):
            for entry in recorded.masks if name == "masks" else recorded.biases:
                if len(entry) != 5 or min(entry) < 0:
                    raise TraceError(
                        f"{self.name}: step {number}: a mask with a shape that can't be."
                    )
                shape = (entry[1], entry[2], entry[3], entry[4])
                extent = Extent(
                    Tensor.QUERIES, entry[0], shape, dtypes.itemsize(kind), start, unit, split=False
                )
                if (entry[0], name) == (site, which):
                    return self._read(frame, extent, None, kind, number)
                start, unit = start + extent.size, unit + bool(extent.size)
        return None

    def lane_step(self, lane: str, step: int) -> LaneStep | None:
        """The comparison of a lane for a step; None: not compared."""
        found = self._lane_entry(step, lane)
        if found is None:
            return None
        frame, fields = found[0], found[1]
        arrays = self._lane_arrays(frame, fields, step)
        return LaneStep(
            lane,
            step,
            *arrays,
            rows_stored=fields.stored,
            logits=fields.logits,
            elapsed_ns=fields.elapsed_ns,
            passes=fields.passes,
        )

    # -- passes ----------------------------------------------------------------------------

    def _pass(self, lane: str, number: int) -> tuple[Step, RowsOf, int, Frame] | None:
        """A lane's own forward: what it was, which rows it has, in how many ROWS frames."""
        if self._passes is None:
            frames = self._catalog.frames
            mine = frames[frames["kind"] == Kind.PASS]
            self._passes = {
                (int(one["step"]), int(one["lane"])): int(one["offset"]) for one in mine
            }
        offset = self._passes.get((number, self._lane_number(lane) | OF_PASS))
        if offset is None:
            return None

        def read() -> tuple[Step, RowsOf, int, Frame]:
            frame = self._frame(offset)
            step, recorded, parts, _ = self._catalog.read_pass(frame)
            return step, recorded, parts, frame

        return self._passes_read.get_or(offset, read)

    def pass_step(self, lane: str, number: int) -> Step | None:
        """A lane's own forward over a whole path of tokens; None: not kept."""
        found = self._pass(lane, number)
        return None if found is None else found[0]

    def pass_rows(  # noqa: PLR0913 - the address of a tensor
        self, lane: str, number: int, tensor: Tensor, index: int, head: int | None
    ) -> Array | None:
        """Rows of a pass, [sequences, heads, places, dim]; with `head`, one."""
        found = self._pass(lane, number)
        if found is None:
            return None
        step, recorded, parts, frame = found
        lane_number = self._lane_number(lane)
        dtype = self.meta.lanes[lane_number - 1].dtype
        whole = self._shapes(step, recorded, dtype)
        places: list[tuple[Frame, int | None]] = [(frame, None)]
        if parts:
            offsets = self._part_offsets(number, lane_number | OF_PASS)
            places = [(self._frame(offset), part) for part, offset in enumerate(offsets)]
        read = [
            self._read(one, extent, head, dtype, number)
            for one, part in places
            for extent in extents(whole, part)
            if (extent.tensor, extent.index) == (tensor, index)
        ]
        if not read:
            return None
        return read[0] if len(read) == 1 else np.concatenate(read, axis=2)

    def pass_mask(self, lane: str, number: int, site: int) -> Array | None:
        """The stored mask of a pass, uint8 [sequences|1, heads|1, places, places]."""
        found = self._pass(lane, number)
        return None if found is None else self._beside_in(found, site, "masks", lane)

    def pass_bias(self, lane: str, number: int, site: int) -> Array | None:
        """The stored bias of a pass, float32 [sequences|1, heads|1, places|1, places]."""
        found = self._pass(lane, number)
        return None if found is None else self._beside_in(found, site, "biases", lane)

    def _lane_number(self, lane: str) -> int:
        names = [one.name for one in self.meta.lanes]
        return names.index(lane) + 1 if lane in names else 0

    def _lane_entry(
        self, number: int, lane: str
    ) -> tuple[Frame, codec.LaneFields, RowsOf, int, int, int] | None:
        """The LANE frame: fields, recorded rows, parts, and where its rows start."""
        if self._lane_frames is None:
            frames = self._catalog.frames
            mine = frames[frames["kind"] == Kind.LANE]
            self._lane_frames = {
                (int(one["step"]), int(one["lane"])): int(one["offset"]) for one in mine
            }
        offset = self._lane_frames.get((number, self._lane_number(lane)))
        if offset is None:
            return None
        frame = self._frame(offset)
        raw = codec.parse(frame.json, self.name)
        fields = codec.decode(codec.LaneFields, raw, f"{self.name}: lane of step {number}")
        recorded = codec.decode(RowsOf, raw.get("rows", {}), self.name)
        parts = raw.get("parts", 0)
        shape = fields.shape
        fits = len(shape) == 3 and min(shape) >= 0 and shape[1] == 4
        size = shape[0] * shape[1] * shape[2] if fits else -1
        if type(parts) is not int or size < 0 or size * 32 > frame.head.payload_bytes:
            raise TraceError(f"{self.name}: the lane of step {number} is damaged.")
        units = len(codec.LANE_ARRAYS) if size else 0
        return frame, fields, recorded, parts, size * 32, units

    def _lane_arrays(self, frame: Frame, fields: codec.LaneFields, number: int) -> list[Array]:
        out: list[Array] = []
        start = frame.payload
        for unit, (_, kind) in enumerate(codec.LANE_ARRAYS):
            dtype = np.dtype(kind)
            shape = fields.shape
            raw = self._file.read(start, shape[0] * shape[1] * shape[2] * dtype.itemsize)
            if raw and crc32(raw) != frame.crcs[unit]:
                self._note_damage(f"comparison of step {number}: damaged", frame.offset)
                raise TraceError(f"{self.name}: comparison of step {number}: damaged.")
            out.append(np.frombuffer(raw, dtype).reshape(shape))
            start += len(raw)
        return out


def _moved(extent: Extent, start: int, unit: int) -> Extent:
    """The same extent after other units in the payload."""
    return Extent(
        extent.tensor,
        extent.index,
        extent.shape,
        extent.itemsize,
        extent.start + start,
        extent.unit + unit,
        extent.split,
    )
