"""PASS frames: another lane's own forward over a whole path of tokens, with its rows and masks."""

from __future__ import annotations

from kvtrace.errors import TraceError
from kvtrace.files.layout import Kind
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.recent import Recent
from kvtrace.files.reading.rows import Holder, RowReader
from kvtrace.files.reading.steps import StepReader
from kvtrace.trace import Step, Tensor
from kvtrace.trace.dtypes import Array

_PASSES_KEPT = 16


class PassReader:
    """Passes by lane and number."""

    __slots__ = ("_catalog", "_kept", "_offsets", "_rows", "_seen", "_steps")

    def __init__(self, catalog: Catalog, steps: StepReader, rows: RowReader) -> None:
        self._catalog, self._steps, self._rows = catalog, steps, rows
        self._kept: Recent[tuple[str, int], Holder] = Recent(_PASSES_KEPT)
        self._offsets: dict[tuple[int, int], int] = {}
        self._seen = 0

    def numbers(self, lane: str) -> list[int]:
        """Numbers of the passes of a lane, ascending."""
        self._look_for_more()
        mine = self._catalog.lane_number(lane)
        return sorted(number for found, number in self._offsets if found == mine)

    def holder(self, lane: str, number: int) -> Holder | None:
        """A pass and the frame that holds it; None: not kept.

        Raises:
            TraceError: It is damaged.
        """
        self._look_for_more()
        place = (self._catalog.lane_number(lane), number)
        if place not in self._offsets:
            return None
        what = f"pass {number} of the {lane} lane"
        with self._catalog.damage.noting(f"{what}: damaged", self._offsets[place]):
            return self._kept.get_or((lane, number), lambda: self._read(lane, number, place, what))

    def _read(self, lane: str, number: int, place: tuple[int, int], what: str) -> Holder:
        frame = self._steps.frame(self._offsets[place], what)
        step, recorded, parts = self._catalog.read_step(frame, Kind.PASS)
        found = self._catalog.meta.lane(lane)
        if found is None or step.number != number:
            raise TraceError(f"{self._steps.name}: {what}: it says that it is another.")
        dtype, of = found.dtype, place[0]
        return Holder(step, frame, recorded, parts, what, dtype, of)

    def _look_for_more(self) -> None:
        frames = self._catalog.frames.rows[self._seen :]
        self._seen += len(frames)
        mine = frames[frames["kind"] == Kind.PASS]
        keys = zip(mine["lane"].tolist(), mine["step"].tolist(), strict=True)
        self._offsets.update(zip(keys, mine["offset"].tolist(), strict=True))

    def step(self, lane: str, number: int) -> Step | None:
        """The pass as a step; None: not kept."""
        holder = self.holder(lane, number)
        return None if holder is None else holder.step

    def rows(
        self, lane: str, number: int, tensor: Tensor, index: int, head: int | None
    ) -> Array | None:
        """Rows of a pass, [sequences, heads, places, dim]; with `head`, one."""
        holder = self.holder(lane, number)
        return None if holder is None else self._rows.tensor_in(holder, index, tensor, head)

    def beside(self, lane: str, number: int, site: int, dtype: str) -> Array | None:
        """The full mask (uint8) or bias (float32) of a pass."""
        holder = self.holder(lane, number)
        return None if holder is None else self._rows.beside_in(holder, site, dtype)
