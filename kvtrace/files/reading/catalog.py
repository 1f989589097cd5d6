"""Where everything in a trace file is: built from INDEX frames, then by reading what follows.

Steps ascend in number and rows in cell; what does not is damage.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvtrace.errors import TraceError, VersionError
from kvtrace.files import codec
from kvtrace.files.comparison import LaneFields
from kvtrace.files.extents import RowsOf, num_frames
from kvtrace.files.index import IndexPart
from kvtrace.files.layout import HEADER_BYTES, Head, Kind
from kvtrace.files.reading.damage import DamageList
from kvtrace.files.reading.frames import Frame, FrameFile
from kvtrace.files.reading.indexed import indexed
from kvtrace.files.reading.reach import Reach, refuse_unknown
from kvtrace.files.tables import FRAMES, GROUP_WRITES, Groups, Table, frame_row, overview_row
from kvtrace.files.tiles import TilePlace
from kvtrace.files.validate import MAX_CELL, check_meta, check_step
from kvtrace.trace import OVERVIEW, Ending, Meta, Note, Step


class Catalog:
    """Frames, steps and writes of one file; `refresh` looks for more."""

    def __init__(self, file: FrameFile) -> None:
        """Read what the INDEX frames say, then the frames after them.

        Raises:
            TraceError: There is no META.
            VersionError: A frame must be understood and is not known.
        """
        self.file = file
        self.notes: list[Note] = []
        self.ending: Ending | None = None
        self.damage = DamageList()
        self.frames = Table(FRAMES)
        self.overview = Table(OVERVIEW)
        self.writes = Table(GROUP_WRITES)
        self.groups = Groups()
        self.numbers: list[int] = []
        self.steps: dict[int, int] = {}
        self.text_parts: list[IndexPart] = []
        self.texts: dict[int, str] = {}
        self._meta: Meta | None = None
        self._reach = Reach(file, self.damage)
        self._pending: list[tuple[int, Head]] = []
        if file.lacks_start:
            self.damage.add(f"{file.name}: its first {HEADER_BYTES} bytes are damaged or lost.", 0)
            self._meta = self._last_meta()
        if file.hint is not None:
            self._start_from_index(file.hint)
        self.refresh()
        if self._meta is None:
            raise TraceError(
                f"{file.name}: no META could be read: nothing can be shown. "
                "The start of the file is missing or damaged; use another copy."
            )

    @property
    def meta(self) -> Meta:
        """The newest META.

        Raises:
            TraceError: None has been read yet.
        """
        if self._meta is None:
            raise TraceError(f"{self.file.name}: a step comes before META.")
        return self._meta

    @property
    def end(self) -> int:
        """Where the last whole frame ends."""
        return self._reach.end

    @property
    def next_sequence(self) -> int:
        """Sequence number of the next frame."""
        return self._reach.sequence

    # -- INDEX frames ----------------------------------------------------------------------

    def _start_from_index(self, offset: int) -> None:
        """Take over the tables of the INDEX frames."""
        found = indexed(self.file, offset)
        if found is None:
            return
        self.frames.extend(found.frames)
        self.overview.extend(found.overview)
        self.writes.extend(found.writes)
        chain, newest = found.chain, found.chain[-1]
        self.frames.extend([frame_row(part.frame.offset, part.frame.head) for part in chain])
        self.groups, self.text_parts = found.groups, chain
        self._reach.passed(newest.frame.offset, newest.frame.head)
        self._read_small_frames()
        steps = found.frames[found.frames["kind"] == Kind.STEP]
        self.numbers = steps["step"].tolist()
        self.steps = dict(zip(self.numbers, steps["offset"].tolist(), strict=True))

    def _read_small_frames(self) -> None:
        """META, notes and the ending, and whatever this version does not know."""
        frames = self.frames.rows
        known = np.isin(
            frames["kind"], (Kind.STEP, Kind.ROWS, Kind.TILE, Kind.LANE, Kind.PASS, Kind.INDEX)
        )
        for row in frames[~known]:
            offset = int(row["offset"])
            try:
                frame = self.file.frame(offset)
                refuse_unknown(self.file, frame.head)
                self._read_small(frame)
            except VersionError:
                raise
            except TraceError as error:
                self.damage.add(str(error), offset)

    def _last_meta(self) -> Meta | None:
        """The newest META of a file without its start, where steps may come before every META."""
        file, found = self.file, None
        offset: int | None = file.start
        while offset is not None:
            here = offset
            try:
                head = file.head(here, file.size())
                offset = None if head is None else here + head.total
                if head is not None and head.kind == Kind.META:
                    meta = codec.decode(Meta, self.json(file.body(here, head)), file.name)
                    check_meta(meta, None, file.name)
                    found = meta
            except TraceError:
                offset = file.next_head(here, 0)
        return found

    # -- frames after the index ------------------------------------------------------------

    def refresh(self) -> bool:
        """Read frames that were added; whether there were any, or some are gone.

        Raises:
            VersionError: A frame must be understood and is not known.
        """
        reach = self._reach
        if self.file.lost or not reach.has_changed():
            return False
        if reach.is_lost():
            return True
        before = reach.end
        self.damage.tail = None
        while (found := reach.next()) is not None:
            try:
                self._enter(*found)
            except TraceError as error:
                self.damage.add(str(error), found[0])
            if found[1].kind != Kind.ROWS:
                self._pending = []
        return reach.end != before

    def _enter(self, offset: int, head: Head) -> None:
        if head.kind == Kind.ROWS:
            self._pending.append((offset, head))
            self.file.body(offset, head)
            return
        frame = self.file.body(offset, head)
        if head.kind == Kind.STEP:
            self._enter_step(frame)
        elif head.kind == Kind.LANE:
            fields = codec.decode(LaneFields, self.json(frame), self.file.name)
            self._commit(frame, 0, fields.step, self._known_lane(fields.lane))
        elif head.kind == Kind.PASS:
            step, _, parts = self.read_step(frame, Kind.PASS)
            name = self.json(frame).get("lane")
            lane = self._known_lane(name if isinstance(name, str) else "")
            self._commit(frame, parts, step.number, lane)
        elif head.kind == Kind.TILE:
            place = codec.decode(TilePlace, self.json(frame), self.file.name)
            self._check_tile(place)
            group = self.groups.number(place.layers)
            row = frame_row(offset, head, cell=place.first_cell, part=place.count, group=group)
            self.frames.extend([row])
        else:
            self._read_small(frame)
            self.frames.extend([frame_row(offset, head)])

    def _enter_step(self, frame: Frame) -> None:
        step, _, parts = self.read_step(frame)
        if self.numbers and step.number <= self.numbers[-1]:
            raise TraceError(f"{self.file.name}: step {step.number} is out of order.")
        self._commit(frame, parts, step.number, 0)
        self.numbers.append(step.number)
        self.steps[step.number] = frame.offset
        self.overview.extend([overview_row(step)])
        self.writes.extend(self.groups.writes(step))
        self.texts.update(step.texts)

    def _commit(self, frame: Frame, parts: int, number: int, lane: int) -> None:
        """A frame of a step or lane, and the ROWS frames right before it, which it commits."""
        first = frame.head.sequence - parts
        rows = [
            frame_row(offset, head, number, part=head.sequence - first, lane=lane)
            for offset, head in self._pending
            if head.sequence >= first
        ]
        self.frames.extend([*rows, frame_row(frame.offset, frame.head, number, lane=lane)])

    def _check_tile(self, place: TilePlace) -> None:
        layers = len(self.meta.cache_layers)
        known = all(0 <= layer < layers for layer in place.layers)
        sound = 0 <= place.first_cell < MAX_CELL and 0 < place.count <= self._reach.size
        if not (known and sound and len(set(place.layers)) == len(place.layers)):
            raise TraceError(f"{self.file.name}: copied rows of layers or cells that can't be.")

    def _read_small(self, frame: Frame) -> None:
        kind = frame.head.kind
        if kind == Kind.META and not self.file.lacks_start:
            meta = codec.decode(Meta, self.json(frame), self.file.name)
            check_meta(meta, self._meta, self.file.name)
            self._meta = meta
        elif kind == Kind.NOTE:
            self.notes.append(codec.decode(Note, self.json(frame), self.file.name))
        elif kind == Kind.END:
            self.ending = codec.decode(Ending, self.json(frame), self.file.name)

    # -- one frame -------------------------------------------------------------------------

    def json(self, frame: Frame) -> Mapping[str, object]:
        """The JSON object of a frame.

        Raises:
            TraceError: It is none.
        """
        return codec.parse(frame.json, f"{self.file.name}: frame at byte {frame.offset}")

    def read_step(self, frame: Frame, kind: Kind = Kind.STEP) -> tuple[Step, RowsOf, int]:
        """A STEP or PASS frame: the step, which rows it has, and in how many ROWS frames.

        Raises:
            TraceError: It is none, or says what can't be.
        """
        if frame.head.kind != kind:
            raise TraceError(
                f"{self.file.name}: the frame at byte {frame.offset} is no {kind.name}."
            )
        fields = self.json(frame)
        where = f"{self.file.name}: step at byte {frame.offset}"
        step = codec.decode(Step, fields, where)
        check_step(step, self.meta, self.file.size(), where)
        recorded = codec.decode(RowsOf, fields.get("rows", {}), where)
        parts = codec.count(fields, "parts")
        if parts != num_frames(step):
            raise TraceError(f"{where}: {parts} frames of rows, {num_frames(step)} expected.")
        return step, recorded, parts

    def lane_number(self, name: str) -> int:
        """Number of a lane in the frame table; 0: META does not name it."""
        names = [lane.name for lane in self.meta.lanes]
        return names.index(name) + 1 if name in names else 0

    def _known_lane(self, name: str) -> int:
        number = self.lane_number(name)
        if not number:
            raise TraceError(f"{self.file.name}: a frame of a lane that META does not name.")
        return number
