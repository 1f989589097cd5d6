"""Writes a trace, frame by frame. A step whose `append` returned survives the process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvtrace.errors import OutputExistsError, TraceError
from kvtrace.files import codec
from kvtrace.files.comparison import lane_arrays, lane_fields
from kvtrace.files.disk import Appender, Write, check_free
from kvtrace.files.extents import (
    Layouts,
    StepRows,
    num_frames,
    rows_of,
)
from kvtrace.files.index import IndexPlace
from kvtrace.files.layout import (
    MUST_UNDERSTAND,
    SLOT_OFFSETS,
    Kind,
    new_identity,
    pack_header,
    pack_slot,
)
from kvtrace.files.packing import Unit, packed, units_of
from kvtrace.files.tables import FRAMES, GROUP_WRITES, Groups, frame_row, overview_row
from kvtrace.files.tiles import Tiler
from kvtrace.files.validate import MAX_CELL, check_meta, check_step
from kvtrace.text import safe
from kvtrace.trace import OVERVIEW, Ending, LaneStep, Meta, Note, Step
from kvtrace.trace.meta import FORMAT_VERSION

INDEX_EVERY = 256
"""Steps between INDEX frames: what a reader must scan after a crash."""


class TraceWriter:
    """Appends steps, comparisons and notes to a new trace file."""

    def __init__(
        self, path: Path, meta: Meta, *, force: bool = False, write: Write = os.pwrite
    ) -> None:
        """Create the file and write META.

        Args:
            path: Where. With `force`, an existing file is replaced once the new one has its META;
                it is never truncated in place.
            meta: The head of the trace.
            force: Replace an existing file.
            write: How bytes are written.

        Raises:
            OutputExistsError: The file exists, can't be created, or somebody is writing it.
            WriteError: The disk is full, or fails.
            TraceError: META is not coherent.
        """
        check_meta(meta, None, safe(path.name))
        replace = force and path.exists()
        if replace:
            check_free(path)
        target = path.with_name(f".{path.name}.{os.getpid()}.new") if replace else path
        self._identity = new_identity()
        self._file = Appender(target, write=write)
        self._name = safe(path.name)
        self._meta = meta
        self._layouts = Layouts(meta)
        self._added = _Added()
        self._groups = Groups()
        self._tiler = Tiler()
        self._sequence = self._slot = self._newest_index = 0
        self._last_steps: list[Step] = []
        try:
            self._file.append(pack_header(FORMAT_VERSION))
            self._frame(Kind.META, codec.encode(meta), must=True)
            if replace:
                target.replace(path)
                self._file.path = path
        except BaseException as error:
            self._file.close()
            target.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OutputExistsError(
                    f"{safe(str(path))}: can't be replaced: {error.strerror}; -o names another."
                ) from None
            raise

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def extend(self, meta: Meta) -> None:
        """A later META: more sites, cache layers or lanes; none may change.

        Raises:
            WriteError: The disk is full, or fails.
            TraceError: META is not coherent, or changes what was written.
        """
        check_meta(meta, self._meta, self._name)
        self._frame(Kind.META, codec.encode(meta), must=True)
        self._meta = meta
        self._layouts = Layouts(meta)

    def append(self, step: Step, rows: StepRows) -> None:
        """Append a step; when this returns, it survives SIGKILL.

        Raises:
            WriteError: The disk is full, or fails; the step is not in the file.
            TraceError: The step is not coherent, or its rows do not fit it; nothing was written.
        """
        check_step(step, self._meta, MAX_CELL, self._name)
        if self._last_steps and step.number <= self._last_steps[-1].number:
            raise TraceError(
                f"{self._name}: step {step.number} after {self._last_steps[-1].number}; "
                "numbers of steps must ascend."
            )
        self._rows_and_commit(Kind.STEP, step, rows, lane=0, fields=step)
        self._last_steps = [*self._last_steps[-1:], step]
        self._added.overview.append(overview_row(step))
        self._added.writes += self._groups.writes(step)
        self._added.texts.update(step.texts)
        for tile in self._tiler.add(step, rows):
            self._frame(
                Kind.TILE,
                codec.encode(tile.place),
                tile.units,
                cell=tile.place.first_cell,
                part=tile.place.count,
                group=self._groups.number(tile.place.layers),
            )
        if len(self._added.overview) >= INDEX_EVERY:
            self._index()

    def compare(self, comparison: LaneStep) -> None:
        """Append how another lane compares in a step; a later one replaces it.

        Raises:
            WriteError: The disk is full, or fails.
            TraceError: META does not name the lane.
        """
        lane = self._lane_number(comparison.lane)
        body = codec.encode(lane_fields(comparison))
        self._frame(Kind.LANE, body, lane_arrays(comparison), comparison.step, lane=lane)

    def keep_pass(self, lane: str, step: Step, rows: StepRows) -> None:
        """Append a lane's own forward over whole paths of tokens.

        Args:
            lane: Name of the lane; the rows are in its dtype.
            step: `number` counts the lane's passes; runs and masks count places.
            rows: By site and by the cache layer that the site reads.

        Raises:
            WriteError: The disk is full, or fails.
            TraceError: META does not name the lane, or the rows do not fit the pass.
        """
        check_step(step, self._meta, MAX_CELL, self._name)
        self._rows_and_commit(Kind.PASS, step, rows, self._lane_number(lane), step)

    def _lane_number(self, lane: str) -> int:
        names = [one.name for one in self._meta.lanes]
        if lane not in names:
            raise TraceError(f"{self._name}: lane {lane!r}, but META names {names}. Extend META.")
        return names.index(lane) + 1

    def note(self, note: Note) -> None:
        """Append a note."""
        self._frame(Kind.NOTE, codec.encode(note))

    def end(self, ending: Ending) -> None:
        """Say that the trace is complete, and why it ended.

        META is said again, so that no damage in one place makes all steps unreadable.

        Raises:
            WriteError: The disk is full or fails, or the file was removed meanwhile.
        """
        self._frame(Kind.META, codec.encode(self._meta), must=True)
        self._frame(Kind.END, codec.encode(ending))
        self._file.check_there()

    def close(self) -> None:
        """Write the last INDEX and close; safe to call twice, and after a failed write."""
        try:
            if self._added.frames and not self._file.failed:
                self._index()
        finally:
            self._added = _Added()
            self._file.close()

    # -- frames ----------------------------------------------------------------------------

    def _rows_and_commit(
        self,
        kind: Kind,
        step: Step,
        rows: StepRows,
        lane: int,
        fields: object,
    ) -> None:
        """ROWS frames where the step is long, then the frame that commits them."""
        recorded = rows_of(rows)
        of = self._meta.lanes[lane - 1] if lane else None
        dtype = None if of is None else of.dtype
        parts = num_frames(step)
        for part in range(parts):
            units = units_of(self._layouts.of(step, recorded, dtype, part), step, rows, part)
            self._frame(Kind.ROWS, b"{}", units, step.number, part=part, lane=lane)
        inline: list[Unit] = []
        if not parts:
            inline = units_of(self._layouts.of(step, recorded, dtype, None), step, rows, None)
        masks = [np.ascontiguousarray(rows.masks[entry[0]], "u1") for entry in recorded.masks]
        biases = [np.ascontiguousarray(rows.biases[entry[0]], "<f4") for entry in recorded.biases]
        extra: dict[str, object] = {"parts": parts, "rows": codec.plain(recorded)}
        if of is not None:
            extra["lane"] = of.name
        body = codec.encode_fields(extra, fields)
        self._frame(kind, body, [*inline, *masks, *biases], step.number, lane=lane)

    def _frame(  # noqa: PLR0913 - a row of the frame table
        self,
        kind: Kind,
        body: bytes,
        units: Sequence[Unit] = (),
        step: int = -1,
        *,
        part: int = 0,
        lane: int = 0,
        cell: int = -1,
        group: int = -1,
        must: bool = False,
    ) -> int:
        """Append one frame in one write; returns where it starts."""
        flags = MUST_UNDERSTAND if must else 0
        head, pieces = packed(kind, flags, self._sequence, self._identity, body, units)
        offset = self._file.append(b"".join(pieces))
        row = frame_row(offset, head, step, cell=cell, part=part, group=group, lane=lane)
        self._added.frames.append(row)
        self._sequence += 1
        return offset

    def _index(self) -> None:
        """Write what was added since the last INDEX, and point a hint slot at it."""
        added, self._added = self._added, _Added()
        units = [
            np.array(added.frames, FRAMES),
            np.array(added.overview, OVERVIEW),
            np.array(added.writes, GROUP_WRITES),
            np.frombuffer(codec.encode_texts(added.texts), "u1"),
        ]
        sizes = tuple([len(unit) for unit in units])
        place = IndexPlace(self._newest_index, sizes, tuple(self._groups.all()))
        sequence = self._sequence
        self._newest_index = self._frame(Kind.INDEX, codec.encode(place), units)
        self._added.frames.clear()
        self._file.rewrite(pack_slot(self._newest_index, sequence), SLOT_OFFSETS[self._slot])
        self._slot = 1 - self._slot


class _Added:
    """What the next INDEX frame will say."""

    __slots__ = ("frames", "overview", "texts", "writes")

    def __init__(self) -> None:
        self.frames: list[tuple[int, ...]] = []
        self.overview: list[tuple[int, ...]] = []
        self.writes: list[tuple[int, ...]] = []
        self.texts: dict[int, str] = {}
