"""A trace file as a `Source`: checked rows, read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvtrace.errors import TraceError
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.cells import CellReader
from kvtrace.files.reading.frames import FrameFile
from kvtrace.files.reading.lanes import LaneReader
from kvtrace.files.reading.passes import PassReader
from kvtrace.files.reading.rows import RowReader
from kvtrace.files.reading.steps import StepReader
from kvtrace.files.reading.units import UnitReader
from kvtrace.trace import Damage, Ending, LaneStep, Meta, Note, Step, Tensor
from kvtrace.trace.dtypes import Array


class FileSource:
    """Implements `kvtrace.trace.Source` over one file."""

    def __init__(self, path: Path | FrameFile, *, without_start: bool = False) -> None:
        """Open the file.

        Args:
            path: The file, or one that is open.
            without_start: Open it too where its first bytes are damaged or missing.

        Raises:
            TraceError: It is no trace, or nothing of it can be read.
            VersionError: A newer kvtrace wrote it.
        """
        if isinstance(path, Path):
            path = FrameFile(path, without_start=without_start)
        self._catalog = Catalog(path)
        self._steps = StepReader(self._catalog)
        units = UnitReader(self._catalog.file, self._catalog.damage.add)
        self._lanes = LaneReader(self._catalog, self._steps, units)
        self._rows = RowReader(self._catalog, self._steps, units)
        self._passes = PassReader(self._catalog, self._steps, self._rows)
        self._cells = CellReader(self._catalog, self._steps, self._rows, units)

    # -- the whole file --------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """Where everything in the file is."""
        return self._catalog

    @property
    def name(self) -> str:
        """File name without its folder, safe to show."""
        return self._catalog.file.name

    @property
    def meta(self) -> Meta:
        """The newest META."""
        return self._catalog.meta

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
        return self._catalog.damage.all()

    def refresh(self) -> bool:
        """Look for frames that were added since; costs what was added.

        Raises:
            VersionError: A frame must be understood and is not known.
        """
        return self._catalog.refresh()

    def again(self) -> FileSource:
        """The same file, whatever its name stands for by now, for another thread.

        Raises:
            TraceError: Nothing of it can be read any more.
        """
        return FileSource(self._catalog.file.again())

    @property
    def fate(self) -> str:
        """What became of the file's name since it was opened; empty: nothing."""
        return self._catalog.file.fate()

    def step_numbers(self) -> Sequence[int]:
        """Numbers of the steps that are there."""
        return self._catalog.numbers

    def overview(self) -> NDArray[np.void]:
        """All steps at a glance, ascending."""
        return self._catalog.overview.rows

    def step(self, number: int) -> Step:
        """One step.

        Raises:
            MissingError: It is not in this trace, or damaged.
        """
        return self._steps.entry(number).step

    def token_text(self, token: int) -> str | None:
        """Text of a token id, raw; None if the trace does not know it."""
        while token not in self._catalog.texts and self._catalog.text_parts:
            part = self._catalog.text_parts.pop()
            try:
                known = part.texts(self._catalog.file)
            except TraceError as error:
                self._catalog.damage.add(str(error), part.frame.offset)
                continue
            self._catalog.texts = {**known, **self._catalog.texts}
        return self._catalog.texts.get(token)

    # -- rows ------------------------------------------------------------------------------

    def writes(self, layer: int) -> NDArray[np.void]:
        """Which step wrote which cells of a cache layer."""
        return self._cells.writes(layer)

    def site_rows(self, step: int, site: int, tensor: Tensor, head: int | None) -> Array | None:
        """QUERIES or OUTPUT of a step, [sequences, heads, new, dim]; with `head`, one head.

        Raises:
            TraceError: The rows are damaged.
        """
        return self._rows.tensor(step, site, tensor, head)

    def written(self, step: int, layer: int, tensor: Tensor) -> Array | None:
        """KEYS or VALUES that a step wrote, [sequences, kv_heads, rows, dim].

        Raises:
            TraceError: The rows are damaged.
        """
        return self._rows.tensor(step, layer, tensor, None)

    def cells(self, layer: int, tensor: Tensor, first: int, count: int, head: int | None) -> Array:
        """KEYS or VALUES of consecutive cells, [kv_heads, count, dim]; with `head`, one.

        Raises:
            TraceError: The rows are damaged, or not in this trace.
        """
        return self._cells.cells(layer, tensor, first, count, head)

    def full_mask(self, step: int, site: int) -> Array | None:
        """The stored mask, uint8 [sequences|1, heads|1, new, seq].

        Raises:
            TraceError: It is damaged.
        """
        return self._rows.beside(step, site, "uint8")

    def bias(self, step: int, site: int) -> Array | None:
        """The stored bias, float32 [sequences|1, heads|1, new, seq].

        Raises:
            TraceError: It is damaged.
        """
        return self._rows.beside(step, site, "float32")

    def lane_step(self, lane: str, step: int) -> LaneStep | None:
        """The comparison of a lane for a step; None: not compared.

        Raises:
            TraceError: It is damaged.
        """
        return self._lanes.comparison(lane, step)

    # -- passes ----------------------------------------------------------------------------

    def pass_numbers(self, lane: str) -> Sequence[int]:
        """Numbers of the passes of a lane."""
        return self._passes.numbers(lane)

    def pass_step(self, lane: str, number: int) -> Step | None:
        """A lane's own forward over a whole path of tokens; None: not kept.

        Raises:
            TraceError: It is damaged.
        """
        return self._passes.step(lane, number)

    def pass_rows(
        self, lane: str, number: int, tensor: Tensor, index: int, head: int | None
    ) -> Array | None:
        """Rows of a pass, [sequences, heads, places, dim]; with `head`, one.

        Raises:
            TraceError: The rows are damaged.
        """
        return self._passes.rows(lane, number, tensor, index, head)

    def pass_mask(self, lane: str, number: int, site: int) -> Array | None:
        """The stored mask of a pass, uint8 [sequences|1, heads|1, places, places].

        Raises:
            TraceError: It is damaged.
        """
        return self._passes.beside(lane, number, site, "uint8")

    def pass_bias(self, lane: str, number: int, site: int) -> Array | None:
        """The stored bias of a pass, float32 [sequences|1, heads|1, places|1, places].

        Raises:
            TraceError: It is damaged.
        """
        return self._passes.beside(lane, number, site, "float32")
