"""The rows of a step or pass: queries, output, K and V, masks; checked when read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.files.extents import ROWS_PER_FRAME, Extent, RowsOf
from kvtrace.files.layout import Kind
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.frames import Frame
from kvtrace.files.reading.steps import StepReader
from kvtrace.files.reading.units import UnitReader
from kvtrace.trace import Step, Tensor, dtypes
from kvtrace.trace.dtypes import Array


class Holder(Struct, frozen=True, eq=False):
    """The frame that commits the rows of a step, or of another lane's pass.

    Attributes:
        step: Whose rows.
        frame: STEP or PASS.
        recorded: Which rows there are.
        parts: Number of ROWS frames; 0: in `frame` itself.
        what: To name it by.
        dtype: Of the lane; None for the recorded dtypes.
        lane: Number of the lane in the frame table.
    """

    step: Step
    frame: Frame
    recorded: RowsOf
    parts: int
    what: str
    dtype: str | None = None
    lane: int = 0

    def name(self, tensor: Tensor, index: int) -> str:
        """What to call one of its tensors."""
        layer = "layer" if tensor in (Tensor.QUERIES, Tensor.OUTPUT) else "cache layer"
        return f"{self.what}, {layer} {index}, {tensor.name.lower()}"

    def has(self, tensor: Tensor, index: int) -> bool:
        """Whether a tensor was recorded."""
        named: Mapping[Tensor, tuple[int, ...]] = {
            Tensor.QUERIES: self.recorded.queries,
            Tensor.OUTPUT: self.recorded.output,
        }
        return index in named.get(tensor, self.recorded.keys)


class RowReader:
    """Tensors of steps and passes."""

    __slots__ = ("_catalog", "_offsets", "_seen", "_steps", "_units")

    def __init__(self, catalog: Catalog, steps: StepReader, units: UnitReader) -> None:
        self._catalog, self._steps, self._units = catalog, steps, units
        self._offsets: dict[tuple[int, int, int], int] = {}
        self._seen = 0

    def tensor(self, number: int, index: int, tensor: Tensor, head: int | None) -> Array | None:
        """A tensor of a step, [sequences, heads, rows, dim]; None: not recorded.

        Raises:
            TraceError: It is damaged.
        """
        return self.tensor_in(self.holder(number), index, tensor, head)

    def tensor_in(
        self, holder: Holder, index: int, tensor: Tensor, head: int | None
    ) -> Array | None:
        """As `tensor`, of a known holder."""
        if not holder.has(tensor, index):
            return None
        what = holder.name(tensor, index)
        places = [self.place(holder, tensor, index, part) for part in range(max(1, holder.parts))]
        found = [
            self._units.read(frame, extent, what, head) for frame, extent in filter(None, places)
        ]
        if not found:
            return None
        return found[0] if len(found) == 1 else np.concatenate(found, axis=2)

    def holder(self, number: int) -> Holder:
        """The frame that commits the rows of a step.

        Raises:
            TraceError: It is damaged.
        """
        own = self._steps.entry(number)
        return Holder(own.step, own.frame, own.recorded, own.parts, f"step {number}")

    def place(
        self, holder: Holder, tensor: Tensor, index: int, part: int
    ) -> tuple[Frame, Extent] | None:
        """Where one frame's part of a tensor is; None: that part has no rows of it.

        Raises:
            TraceError: The frame is damaged, or lost.
        """
        step, recorded, dtype = holder.step, holder.recorded, holder.dtype
        if not holder.parts:
            extent = self._steps.layout(step, recorded, dtype).extents.get((tensor, index))
            return None if extent is None else (holder.frame, extent)
        extent = self._steps.layout(step, recorded, dtype, part).extents.get((tensor, index))
        if extent is None:
            return None
        self._look_for_more()
        offset = self._offsets.get((holder.lane, step.number, part))
        what = holder.name(tensor, index)
        if offset is None:
            self._catalog.damage.add(f"{holder.what}: rows are lost", holder.frame.offset)
            raise TraceError(f"{self._steps.name}: {what}: lost to damage in this file.")
        return self._steps.frame(offset, what), extent

    def place_of_row(
        self, holder: Holder, tensor: Tensor, index: int, row: int
    ) -> tuple[Frame, Extent, int] | None:
        """Where a row of a tensor is: frame, extent, and the first row of that extent.

        Raises:
            TraceError: The frame is damaged, or lost.
        """
        part = row // ROWS_PER_FRAME if holder.parts else 0
        found = self.place(holder, tensor, index, part) if holder.has(tensor, index) else None
        return None if found is None else (*found, part * ROWS_PER_FRAME)

    def _look_for_more(self) -> None:
        frames = self._catalog.frames.rows[self._seen :]
        self._seen += len(frames)
        mine = frames[frames["kind"] == Kind.ROWS]
        columns = (mine["lane"].tolist(), mine["step"].tolist(), mine["part"].tolist())
        self._offsets.update(zip(zip(*columns, strict=True), mine["offset"].tolist(), strict=True))

    # -- masks -----------------------------------------------------------------------------

    def beside(self, number: int, site: int, dtype: str) -> Array | None:
        """A full mask (uint8) or a bias (float32) of a step; None: not recorded.

        Raises:
            TraceError: It is damaged.
        """
        return self.beside_in(self.holder(number), site, dtype)

    def beside_in(self, holder: Holder, site: int, dtype: str) -> Array | None:
        """As `beside`, of a known holder: masks and biases stand behind its rows."""
        recorded, size, units = holder.recorded, 0, 0
        if not holder.parts:
            inline = self._steps.layout(holder.step, recorded, holder.dtype)
            size, units = inline.size, inline.units
        what = f"{holder.what}, layer {site}, {'mask' if dtype == 'uint8' else 'bias'}"
        stored = [(one, "uint8") for one in recorded.masks]
        stored += [(one, "float32") for one in recorded.biases]
        for shape, kind in stored:
            if len(shape) != 5 or min(shape) < 0:
                raise TraceError(f"{self._steps.name}: {what}: a shape that can't be.")
            whole = (shape[1], shape[2], shape[3], shape[4])
            extent = Extent(Tensor.QUERIES, shape[0], whole, kind, size, units, split=False)
            if (shape[0], kind) == (site, dtype):
                self._check_mask(holder.step, site, whole, what)
                if not extent.size:
                    return np.zeros(whole, dtypes.storage(kind))
                return self._units.read(holder.frame, extent, what)
            size, units = size + extent.size, units + bool(extent.size)
        return None

    def _check_mask(
        self, step: Step, site: int, shape: tuple[int, int, int, int], what: str
    ) -> None:
        """A mask must broadcast to [sequences, heads, new, seq] of its site."""
        heads = self._catalog.meta.sites[site].num_heads
        allowed = ((1, step.num_sequences), (1, heads), (1, step.new_at(site)))
        if any(size not in sizes for size, sizes in zip(shape, allowed, strict=False)):
            raise TraceError(
                f"{self._steps.name}: {what}: {list(shape)} does not fit the step. Use "
                "`kvtrace recover` to leave it out."
            )
