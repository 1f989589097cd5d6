"""Writes a trace, frame by frame. A step whose `append` returned survives the process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from zlib import crc32

import numpy as np

from kvtrace.files import codec
from kvtrace.files.disk import Appender, Write
from kvtrace.files.extents import (
    ROWS_PER_FRAME,
    Extent,
    StepRows,
    contiguous,
    extents,
    num_frames,
    rows_of,
    shapes,
)
from kvtrace.files.layout import (
    HEAD_BYTES,
    MUST_UNDERSTAND,
    SLOT_OFFSETS,
    Head,
    Kind,
    aligned,
    pack_header,
    pack_slot,
)
from kvtrace.files.tables import FRAMES, GROUP_WRITES, OF_PASS, Tables
from kvtrace.files.tiles import Tiler
from kvtrace.trace import OVERVIEW, Ending, LaneStep, Meta, Note, Step
from kvtrace.trace.dtypes import Array
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
            OutputExistsError: The file exists, or can't be created.
            WriteError: The disk is full, or fails.
        """
        replace = force and path.exists()
        target = path.with_name(f".{path.name}.{os.getpid()}.new") if replace else path
        self._file = Appender(target, write=write)
        self.meta = meta
        self._tables = Tables()
        self._tiler = Tiler()
        self._sequence = self._since_index = self._slot = self._newest_index = 0
        self._steps: dict[int, Step] = {}
        try:
            self._file.append(pack_header(FORMAT_VERSION))
            self._frame(Kind.META, codec.encode(meta), must=True)
            if replace:
                target.replace(path)
                self._file.path = path
        except BaseException:
            self._file.close()
            target.unlink(missing_ok=True)
            raise

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def extend(self, meta: Meta) -> None:
        """A later META: more sites, cache layers or lanes; none may change."""
        self.meta = meta
        self._frame(Kind.META, codec.encode(meta), must=True)

    def append(self, step: Step, rows: StepRows) -> None:
        """Append a step; when this returns, it survives SIGKILL.

        Raises:
            WriteError: The disk is full, or fails; the step is not in the file.
        """
        self._rows_and_commit(Kind.STEP, step, rows, lane=0, fields=step)
        self._tables.add_step(step)
        self._steps = {
            number: old for number, old in self._steps.items() if number > step.number - 2
        }
        self._steps[step.number] = step
        for tile in self._tiler.add(step, rows):
            group = self._tables.group(tile.layers)
            self._frame(
                Kind.TILE,
                codec.encode(tile.place),
                [contiguous(part) for part in tile.parts],
                step=-1,
                cell=tile.place.first_cell,
                group=group,
            )
        self._since_index += 1
        if self._since_index >= INDEX_EVERY:
            self._index()

    def compare(
        self, comparison: LaneStep, rows: StepRows | None, step: Step | None = None
    ) -> None:
        """Append another lane's comparison, and its rows if they are to be kept.

        Args:
            comparison: With `rows_stored` saying whether there are rows.
            rows: Of that lane, in its dtype.
            step: The step compared; needed only for one further back than the last two.
        """
        lane = [lane.name for lane in self.meta.lanes].index(comparison.lane) + 1
        arrays = [
            np.ascontiguousarray(getattr(comparison, name), dtype)
            for name, dtype in codec.LANE_ARRAYS
        ]
        compared = step or self._steps.get(comparison.step)
        if rows is None or compared is None:
            fields = _lane_fields(comparison, stored=False)
            self._frame(Kind.LANE, codec.encode(fields), arrays, comparison.step, lane=lane)
            return
        fields = _lane_fields(comparison, stored=True)
        self._rows_and_commit(Kind.LANE, compared, rows, lane, fields, arrays)

    def keep_pass(self, lane: str, step: Step, rows: StepRows) -> None:
        """Append a lane's own forward over whole paths of tokens.

        Args:
            lane: Name of the lane; the rows are in its dtype.
            step: `number` counts the lane's passes; runs and masks count places.
            rows: By site and by the cache layer that the site reads.
        """
        number = [one.name for one in self.meta.lanes].index(lane) + 1
        self._rows_and_commit(Kind.PASS, step, rows, number | OF_PASS, step)

    def note(self, note: Note) -> None:
        """Append a note."""
        self._frame(Kind.NOTE, codec.encode(note))

    def end(self, ending: Ending) -> None:
        """Say that the trace is complete, and why it ended."""
        self._frame(Kind.END, codec.encode(ending))

    def close(self) -> None:
        """Write the last INDEX and close; safe to call twice, and after a failed write."""
        try:
            if self._since_index or not self._newest_index:
                if not self._file.failed:
                    self._index()
        finally:
            self._since_index = 0
            self._newest_index = self._newest_index or 1
            self._file.close()

    # -- frames ----------------------------------------------------------------------------

    def _rows_and_commit(
        self,
        kind: Kind,
        step: Step,
        rows: StepRows,
        lane: int,
        fields: object,
        before: Sequence[Array] = (),
    ) -> None:
        """ROWS frames where the step is long, then the frame that commits them."""
        recorded = rows_of(rows)
        dtype = self.meta.lanes[(lane & ~OF_PASS) - 1].dtype if lane else None
        whole = shapes(self.meta, step, recorded, dtype)
        parts = num_frames(step)
        for part in range(parts):
            units = _units(extents(whole, part), rows, part)
            self._frame(Kind.ROWS, b"{}", units, step.number, part=part, lane=lane)
        inline = [] if parts else _units(extents(whole, None), rows, None)
        masks = [contiguous(rows.masks[entry[0]]) for entry in recorded.masks]
        biases = [contiguous(rows.biases[entry[0]]) for entry in recorded.biases]
        extra: dict[str, object] = {"parts": parts, "rows": codec.plain(recorded)}
        if lane & OF_PASS:
            extra["lane"] = self.meta.lanes[(lane & ~OF_PASS) - 1].name
        body = codec.encode_fields(extra, fields)
        self._frame(kind, body, [*before, *inline, *masks, *biases], step.number, lane=lane)

    def _frame(  # noqa: PLR0913 - a row of the frame table
        self,
        kind: Kind,
        body: bytes,
        units: Sequence[Array] = (),
        step: int = -1,
        *,
        part: int = 0,
        lane: int = 0,
        cell: int = -1,
        group: int = -1,
        must: bool = False,
    ) -> int:
        """Append one frame in one write; returns where it starts."""
        raw = [memoryview(unit).cast("B") for unit in units if unit.size]
        crcs = np.array([crc32(unit) for unit in raw], "<u4").tobytes()
        payload = sum(unit.nbytes for unit in raw)
        body_crc = crc32(body, crc32(crcs))
        flags = MUST_UNDERSTAND if must else 0
        head = Head(kind, flags, self._sequence, len(body), len(raw), payload, body_crc)
        pad = bytes(head.payload_start - HEAD_BYTES - head.body_bytes)
        end = bytes(aligned(payload) - payload)
        offset = self._file.append(b"".join([head.pack(), crcs, body, pad, *raw, end]))
        row = (offset, self._sequence, payload, step, cell, len(body), len(raw), part, group)
        self._tables.frames.append((*row, int(kind), flags, lane))
        self._sequence += 1
        return offset

    def _index(self) -> None:
        """Write what was added since the last INDEX, and point a hint slot at it."""
        tables = self._tables
        units = [
            np.array(tables.frames, FRAMES),
            np.array(tables.overview, OVERVIEW),
            np.array(tables.writes, GROUP_WRITES),
        ]
        sizes = [len(unit) for unit in units]
        place: Mapping[str, object] = {
            "previous": self._newest_index,
            "sizes": sizes,
            "groups": tables.groups,
        }
        tables.frames, tables.overview, tables.writes = [], [], []
        body = codec.encode_plain(place)
        raw = [unit.view("u1") for unit in units if unit.size]
        self._newest_index = self._frame(Kind.INDEX, body, raw)
        self._file.rewrite(pack_slot(self._newest_index, self._sequence), SLOT_OFFSETS[self._slot])
        self._slot = 1 - self._slot
        self._since_index = 0


def _units(parts: Sequence[Extent], rows: StepRows, part: int | None) -> list[Array]:
    """The payload units of a frame, in order."""
    out: list[Array] = []
    for extent in parts:
        array = rows.of(extent.tensor)[extent.index]
        if part is None:
            out.append(contiguous(array))
            continue
        start = part * ROWS_PER_FRAME
        cut = contiguous(array[:, :, start : start + extent.shape[2]])
        out += [head for sequence in cut for head in sequence]
    return out


def _lane_fields(comparison: LaneStep, *, stored: bool) -> codec.LaneFields:
    return codec.LaneFields(
        comparison.lane,
        comparison.step,
        comparison.max_abs.shape,
        stored,
        comparison.logits,
        comparison.elapsed_ns,
        comparison.passes,
    )
