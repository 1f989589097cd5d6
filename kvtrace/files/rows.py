"""The rows of a step: queries, output, what it wrote, masks; of any lane, checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.files.catalog import Catalog
from kvtrace.files.extents import ROWS_PER_FRAME, Extent, RowsOf
from kvtrace.files.frames import Frame
from kvtrace.files.lanes import LaneReader
from kvtrace.files.layout import Kind
from kvtrace.files.steps import StepReader
from kvtrace.files.units import UnitReader
from kvtrace.trace import CACHED, Step, Tensor, dtypes
from kvtrace.trace.dtypes import Array


@dataclass(frozen=True, slots=True, eq=False)
class _Holder:
    """The frame that commits a step's rows in one lane.

    Attributes:
        step: Whose rows.
        frame: STEP, or LANE.
        recorded: Which rows there are.
        parts: Number of ROWS frames; 0: in `frame` itself.
        dtype: Of the lane; None for the recorded dtypes.
        lane: Number of the lane in the frame table.
        size, units: What comes before the rows in the payload of `frame`.
    """

    step: Step
    frame: Frame
    recorded: RowsOf
    parts: int
    dtype: str | None = None
    lane: int = 0
    size: int = 0
    units: int = 0


class RowReader:
    """Tensors of steps."""

    __slots__ = ("_catalog", "_lanes", "_offsets", "_seen", "_steps", "_units")

    def __init__(
        self, catalog: Catalog, steps: StepReader, lanes: LaneReader, units: UnitReader
    ) -> None:
        self._catalog, self._steps, self._lanes, self._units = catalog, steps, lanes, units
        self._offsets: dict[tuple[int, int, int], int] = {}
        self._seen = 0

    def tensor(
        self, number: int, index: int, tensor: Tensor, lane: str, head: int | None
    ) -> Array | None:
        """A tensor of a step, [sequences, heads, rows, dim]; None: not recorded in that lane.

        Raises:
            TraceError: It is damaged.
        """
        holder = self._holder(number, lane)
        if holder is None or not _names(holder.recorded, tensor, index):
            return None
        what = _what(number, tensor, index, lane)
        places = [
            self._place(holder, tensor, index, part, what) for part in range(max(1, holder.parts))
        ]
        found = [
            self._units.read(frame, extent, what, head) for frame, extent in filter(None, places)
        ]
        if not found:
            return None
        return found[0] if len(found) == 1 else np.concatenate(found, axis=2)

    def place_of_cell(
        self, number: int, layer: int, tensor: Tensor, lane: str, row: int
    ) -> tuple[Frame, Extent, int] | None:
        """The frame and extent of a row that a step wrote, and its first row there.

        None: not recorded in that lane.

        Raises:
            TraceError: The frame is damaged.
        """
        holder = self._holder(number, lane)
        if holder is None or not _names(holder.recorded, tensor, layer):
            return None
        part = row // ROWS_PER_FRAME if holder.parts else 0
        place = self._place(holder, tensor, layer, part, _what(number, tensor, layer, lane))
        return None if place is None else (*place, part * ROWS_PER_FRAME)

    def _holder(self, number: int, lane: str) -> _Holder | None:
        own = self._steps.entry(number)
        if lane == CACHED:
            return _Holder(own.step, own.frame, own.recorded, own.parts)
        entry = self._lanes.entry(lane, number)
        found = self._catalog.meta.lane(lane)
        if entry is None or found is None or not entry.fields.stored:
            return None
        return _Holder(
            own.step,
            entry.frame,
            entry.recorded,
            entry.parts,
            found.dtype,
            self._lanes.number(lane),
            entry.size,
            entry.units,
        )

    def _place(
        self, holder: _Holder, tensor: Tensor, index: int, part: int, what: str
    ) -> tuple[Frame, Extent] | None:
        """Where one frame's part of a tensor is; None: this part has no rows of it."""
        step, recorded, dtype = holder.step, holder.recorded, holder.dtype
        if not holder.parts:
            extent = self._steps.layout(step, recorded, dtype).extents.get((tensor, index))
            if extent is None:
                return None
            return holder.frame, extent.after(holder.size, holder.units) if holder.size else extent
        extent = self._steps.layout(step, recorded, dtype, part).extents.get((tensor, index))
        if extent is None:
            return None
        self._look_for_more()
        offset = self._offsets.get((holder.lane, step.number, part))
        if offset is None:
            raise TraceError(f"{self._steps.name}: {what}: lost to damage in this file.")
        return self._steps.frame(offset, what), extent

    def _look_for_more(self) -> None:
        frames = self._catalog.frames.rows[self._seen :]
        self._seen += len(frames)
        mine = frames[frames["kind"] == Kind.ROWS]
        columns = (mine["lane"].tolist(), mine["step"].tolist(), mine["part"].tolist())
        self._offsets.update(zip(zip(*columns, strict=True), mine["offset"].tolist(), strict=True))

    def beside(self, number: int, site: int, dtype: str) -> Array | None:
        """A full mask (uint8) or a bias (float32): behind the rows of the STEP frame.

        Raises:
            TraceError: It is damaged.
        """
        entry = self._steps.entry(number)
        size = units = 0
        if not entry.parts:
            inline = self._steps.layout(entry.step, entry.recorded)
            size, units = inline.size, inline.units
        stored = [(one, "uint8") for one in entry.recorded.masks]
        stored += [(one, "float32") for one in entry.recorded.biases]
        for shape, kind in stored:
            if len(shape) != 5 or min(shape) < 0:
                raise TraceError(f"{self._steps.name}: step {number}: a mask that can't be.")
            whole = (shape[1], shape[2], shape[3], shape[4])
            extent = Extent(Tensor.QUERIES, shape[0], whole, kind, size, units, split=False)
            if (shape[0], kind) == (site, dtype):
                self._check_mask(entry.step, site, whole)
                if not extent.size:
                    return np.zeros(whole, dtypes.storage(kind))
                what = f"step {number}, layer {site}, mask"
                return self._units.read(entry.frame, extent, what)
            size, units = size + extent.size, units + bool(extent.size)
        return None

    def _check_mask(self, step: Step, site: int, shape: tuple[int, int, int, int]) -> None:
        """A mask must broadcast to [sequences, heads, new, seq] of its site."""
        heads = self._catalog.meta.sites[site].num_heads
        allowed = ((1, step.num_sequences), (1, heads), (1, step.new_at(site)))
        if any(size not in sizes for size, sizes in zip(shape, allowed, strict=False)):
            raise TraceError(
                f"{self._steps.name}: step {step.number}, layer {site}: a mask {list(shape)} that "
                "does not fit the step."
            )


def _names(recorded: RowsOf, tensor: Tensor, index: int) -> bool:
    named: Mapping[Tensor, tuple[int, ...]] = {
        Tensor.QUERIES: recorded.queries,
        Tensor.OUTPUT: recorded.output,
    }
    return index in named.get(tensor, recorded.keys)


def _what(number: int, tensor: Tensor, index: int, lane: str) -> str:
    layer = "layer" if tensor in (Tensor.QUERIES, Tensor.OUTPUT) else "cache layer"
    other = "" if lane == CACHED else f" of the {lane} lane"
    return f"step {number}, {layer} {index}, {tensor.name.lower()}{other}"
