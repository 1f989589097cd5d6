"""Steps of a file and the layout of their rows, read when asked for and kept for a while."""

from __future__ import annotations

from msgspec import Struct

from kvtrace.errors import MissingError, TraceError
from kvtrace.files.extents import Layout, Layouts, RowsOf
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.frames import Frame
from kvtrace.files.reading.recent import Recent
from kvtrace.trace import Step

_STEPS_KEPT = 512
_FRAMES_KEPT = 2048


class Entry(Struct, frozen=True, eq=False):
    """A step as it stands in the file.

    Attributes:
        step: What it says.
        recorded: Which of its rows there are.
        parts: Number of its ROWS frames; 0: its own frame holds them.
        frame: The STEP frame.
    """

    step: Step
    recorded: RowsOf
    parts: int
    frame: Frame


class StepReader:
    """Steps by number, frames by offset."""

    __slots__ = ("_catalog", "_entries", "_frames", "_layouts", "_layouts_of", "name")

    def __init__(self, catalog: Catalog) -> None:
        self.name = catalog.file.name
        self._catalog = catalog
        self._entries: Recent[int, Entry] = Recent(_STEPS_KEPT)
        self._frames: Recent[int, Frame] = Recent(_FRAMES_KEPT)
        self._layouts_of = catalog.meta
        self._layouts = Layouts(catalog.meta)

    def entry(self, number: int) -> Entry:
        """A step.

        Raises:
            MissingError: It is not in this trace, or damaged.
        """
        return self._entries.get_or(number, lambda: self._read(number))

    def _read(self, number: int) -> Entry:
        offset = self._catalog.steps.get(number)
        if offset is None:
            raise MissingError(
                f"{self.name}: step {number} is not in this trace ({self._what_there_is()})."
            )
        try:
            frame = self._catalog.file.frame(offset)
            step, recorded, parts = self._catalog.read_step(frame)
            if step.number != number:
                raise TraceError(f"{self.name}: it says that it is step {step.number}.")
        except TraceError as error:
            self._catalog.damage.add(f"step {number} is damaged", offset)
            raise MissingError(f"{self.name}: step {number} is damaged: {error}") from None
        return Entry(step, recorded, parts, frame)

    def _what_there_is(self) -> str:
        numbers = self._catalog.numbers
        if not numbers:
            return "it has no steps"
        return f"it has {len(numbers)}, {numbers[0]} to {numbers[-1]}"

    def frame(self, offset: int, what: str) -> Frame:
        """A frame, kept for a while.

        Raises:
            TraceError: It is damaged, or cut off.
        """
        try:
            return self._frames.get_or(offset, lambda: self._catalog.file.frame(offset))
        except TraceError as error:
            self._catalog.damage.add(f"{what}: damaged", offset)
            raise TraceError(f"{self.name}: {what}: {error}") from None

    def layout(
        self, step: Step, recorded: RowsOf, dtype: str | None = None, part: int | None = None
    ) -> Layout:
        """The layout of a frame of a step; see `Layouts.of`.

        Raises:
            TraceError: The step does not fit META.
        """
        if self._layouts_of is not self._catalog.meta:
            self._layouts_of = self._catalog.meta
            self._layouts = Layouts(self._layouts_of)
        return self._layouts.of(step, recorded, dtype, part)
