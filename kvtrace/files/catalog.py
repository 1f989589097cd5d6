"""Where everything in a trace file is: built from INDEX frames, then by reading what follows.

Keeps up with a growing file. A torn tail is not damage: the next look continues there.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kvtrace.errors import MissingError, TraceError
from kvtrace.files import codec
from kvtrace.files.extents import RowsOf, extents, num_frames, shapes
from kvtrace.files.frames import Frame, FrameFile
from kvtrace.files.layout import HEADER_BYTES, MUST_UNDERSTAND, Kind
from kvtrace.files.tables import FRAMES, GROUP_WRITES, OF_PASS, Group, Tables
from kvtrace.files.tiles import TilePlace
from kvtrace.files.validate import check_meta, check_step
from kvtrace.trace import OVERVIEW, Damage, Ending, Meta, Note, Step

_CHAIN_LIMIT = 1 << 20


class Catalog:
    """Frames, steps and writes of one file; `refresh` looks for more."""

    def __init__(self, file: FrameFile) -> None:
        """Read what the INDEX frames say, then the frames after them.

        Raises:
            TraceError: There is no META, or a frame that must be understood is not known.
        """
        self.file = file
        self.meta: Meta | None = None
        self.notes: list[Note] = []
        self.ending: Ending | None = None
        self.damage: list[Damage] = []
        self.frames = np.zeros(0, FRAMES)
        self.overview = np.zeros(0, OVERVIEW)
        self.writes = np.zeros(0, GROUP_WRITES)
        self.groups: list[Group] = []
        self.step_frames: dict[int, int] = {}
        self._offset, self._sequence, self._size = HEADER_BYTES, 0, -1
        self._pending_rows: list[tuple[int, ...]] = []
        if file.hint is not None:
            self._from_index(file.hint)
        self.refresh()
        if self.meta is None:
            raise TraceError(f"{file.name}: no META frame could be read: nothing can be shown.")

    # -- INDEX frames ----------------------------------------------------------------------

    def _from_index(self, offset: int) -> None:
        """Follow the chain of INDEX frames back; a damaged one means reading everything."""
        try:
            chain = self._chain(offset)
        except TraceError:
            return
        frames, overview, writes = [], [], []
        groups: list[Group] = []
        for frame, place in reversed(chain):
            parts = self._index_units(frame, place)
            if parts is None:
                return
            frames.append(parts[0])
            overview.append(parts[1])
            writes.append(parts[2])
            groups = [tuple(group) for group in place["groups"]]
        self.frames = np.concatenate(frames)
        self.overview, self.writes = np.concatenate(overview), np.concatenate(writes)
        self.groups = groups
        newest = chain[0][0]
        if not self._plausible(newest.end):
            self._forget()
            return
        self._offset, self._sequence = newest.end, newest.head.sequence + 1
        self._enter_known()

    def _chain(self, offset: int) -> list[tuple[Frame, dict[str, object]]]:
        chain: list[tuple[Frame, dict[str, object]]] = []
        while offset:
            frame = self.file.frame(offset)
            if frame is None or frame.head.kind != Kind.INDEX or len(chain) > _CHAIN_LIMIT:
                raise TraceError(f"{self.file.name}: the index at byte {offset} is damaged.")
            place = codec.parse(frame.json, self.file.name)
            previous = place.get("previous")
            if type(previous) is not int or not 0 <= previous < offset:
                raise TraceError(f"{self.file.name}: the index at byte {offset} is damaged.")
            chain.append((frame, place))
            offset = previous
        return chain

    def _index_units(
        self, frame: Frame, place: dict[str, object]
    ) -> tuple[NDArray[np.void], ...] | None:
        """The three tables of an INDEX frame, checked; None if they do not fit."""
        sizes, groups = place.get("sizes"), place.get("groups")
        fits = isinstance(sizes, list) and len(sizes) == 3
        if not fits or not _are_groups(groups) or any(type(n) is not int or n < 0 for n in sizes):
            return None
        dtypes = (FRAMES, OVERVIEW, GROUP_WRITES)
        wanted = [n * dtype.itemsize for n, dtype in zip(sizes, dtypes, strict=True)]
        if sum(wanted) != frame.head.payload_bytes or frame.head.units != sum(map(bool, sizes)):
            return None
        out, at, unit = [], frame.payload, 0
        for bytes_, dtype in zip(wanted, dtypes, strict=True):
            raw = self.file.read(at, bytes_)
            if bytes_ and crc32(raw) != frame.crcs[unit]:
                return None
            unit += bool(bytes_)
            out.append(np.frombuffer(raw, dtype))
            at += bytes_
        return tuple(out)

    def _plausible(self, end: int) -> bool:
        """Whether every number of the tables stays inside the file."""
        frames, writes = self.frames, self.writes
        inside = (frames["offset"] < end).all() and (frames["payload"] <= end).all()
        groups = (writes["group"] >= 0).all() and (writes["group"] < len(self.groups)).all()
        sane = (writes["rows"] > 0).all() and (writes["rows"] <= end).all()
        sane = sane and (writes["first_cell"] >= 0).all() and (writes["sequences"] > 0).all()
        sane = (
            sane and (writes["sequences"] <= end).all() and (writes["first_cell"] < 1 << 48).all()
        )
        return bool(inside and groups and sane)

    def _forget(self) -> None:
        self.frames, self.groups = np.zeros(0, FRAMES), []
        self.overview, self.writes = np.zeros(0, OVERVIEW), np.zeros(0, GROUP_WRITES)

    def _enter_known(self) -> None:
        """Read META, notes and the ending that the index names, and number the steps."""
        few = (Kind.META, Kind.NOTE, Kind.END)
        for offset in self.frames["offset"][np.isin(self.frames["kind"], few)].tolist():
            try:
                frame = self.file.frame(offset)
                if frame is not None:
                    self._read_small(frame)
            except TraceError as error:
                self.damage.append(Damage(str(error), offset))
        steps = self.frames["kind"] == Kind.STEP
        numbers, places = self.frames["step"][steps].tolist(), np.flatnonzero(steps).tolist()
        self.step_frames = dict(zip(numbers, places, strict=True))

    # -- frames after the index ------------------------------------------------------------

    def refresh(self) -> bool:
        """Read frames that were added; whether there were any.

        Raises:
            TraceError: A frame that must be understood is not known.
        """
        size = self.file.size()
        if size == self._size:
            return False
        self._size = size
        added = Tables()
        added.groups = self.groups
        before = self._sequence
        while True:
            try:
                frame = self.file.frame(self._offset, size)
                if frame is None:
                    break
                if frame.head.sequence != self._sequence:
                    raise TraceError(
                        f"{self.file.name}: the frame at byte {self._offset} is out of order."
                    )
                self._enter(frame, added)
            except TraceError as error:
                if not self._skip_damage(error):
                    break
                continue
            self._offset, self._sequence = frame.end, frame.head.sequence + 1
        self._grow(added)
        return self._sequence != before

    def _skip_damage(self, error: TraceError) -> bool:
        """Go on at the next good frame; False at a torn tail."""
        found = self.file.next_frame(self._offset, self._sequence - 1)
        if found is None:
            return False
        self.damage.append(Damage(str(error), self._offset))
        self._pending_rows = []
        self._offset, self._sequence = found
        return True

    def _enter(self, frame: Frame, added: Tables) -> None:
        head = frame.head
        row = [frame.offset, head.sequence, head.payload_bytes, -1, -1, len(frame.json)]
        row += [head.units, 0, -1, head.kind, head.flags, 0]
        if head.kind == Kind.STEP:
            step, recorded, parts = self.read_step(frame)
            self._check_rows(frame, step, recorded, parts)
            self._commit_rows(added, step.number, 0)
            row[3] = step.number
            added.add_step(step)
        elif head.kind == Kind.LANE:
            fields = codec.decode(codec.LaneFields, self._json(frame), self.file.name)
            lane = self._lane_number(fields.lane)
            self._commit_rows(added, fields.step, lane)
            row[3], row[11] = fields.step, lane
        elif head.kind == Kind.PASS:
            step, _, parts, lane = self.read_pass(frame)
            if parts and len(self._pending_rows) != parts:
                raise TraceError(f"{self.file.name}: rows of pass {step.number} are missing.")
            self._commit_rows(added, step.number, lane | OF_PASS)
            row[3], row[11] = step.number, lane | OF_PASS
        elif head.kind == Kind.ROWS:
            self._pending_rows.append(tuple(row))
            return
        elif head.kind == Kind.TILE:
            place = codec.decode(TilePlace, self._json(frame), self.file.name)
            row[4], row[8] = place.first_cell, added.group(place.layers)
        else:
            self._read_small(frame)
        added.frames.append(tuple(row))

    def _commit_rows(self, added: Tables, number: int, lane: int) -> None:
        """The ROWS frames before a STEP or LANE belong to it."""
        for part, row in enumerate(self._pending_rows):
            added.frames.append((*row[:3], number, *row[4:7], part, *row[8:11], lane))
        self._pending_rows = []

    def _check_rows(self, frame: Frame, step: Step, recorded: RowsOf, parts: int) -> None:
        """The payload sizes must be what META and the step say."""
        if parts and len(self._pending_rows) != parts:
            raise TraceError(f"{self.file.name}: rows of step {step.number} are missing.")
        if step.number in self.step_frames:
            raise TraceError(f"{self.file.name}: step {step.number} is there twice.")
        try:
            whole = shapes(self.known_meta(), step, recorded, None)
        except (IndexError, KeyError, ValueError):
            raise TraceError(
                f"{self.file.name}: step {step.number} names a layer that META does not have."
            ) from None
        held = extents(whole, None) if not parts else []
        if num_frames(step) != parts or sum(e.size for e in held) > frame.head.payload_bytes:
            raise TraceError(f"{self.file.name}: step {step.number} does not fit its rows.")

    def _read_small(self, frame: Frame) -> None:
        kind = frame.head.kind
        if kind == Kind.META:
            meta = codec.decode(Meta, self._json(frame), self.file.name)
            check_meta(meta, self.file.name)
            self.meta = meta
        elif kind == Kind.NOTE:
            self.notes.append(codec.decode(Note, self._json(frame), self.file.name))
        elif kind == Kind.END:
            self.ending = codec.decode(Ending, self._json(frame), self.file.name)
        elif kind != Kind.INDEX and frame.head.flags & MUST_UNDERSTAND:
            raise TraceError(
                f"{self.file.name}: a frame of kind {kind} must be understood and is not known. "
                "Upgrade with `pip install -U kvtrace`."
            )

    def _grow(self, added: Tables) -> None:
        if added.frames:
            start = len(self.frames)
            self.frames = np.concatenate([self.frames, np.array(added.frames, FRAMES)])
            for place, row in enumerate(added.frames):
                if row[9] == Kind.STEP:
                    self.step_frames[row[3]] = start + place
        if added.overview:
            self.overview = np.concatenate([self.overview, np.array(added.overview, OVERVIEW)])
        if added.writes:
            self.writes = np.concatenate([self.writes, np.array(added.writes, GROUP_WRITES)])

    @property
    def end(self) -> int:
        """Where the last whole frame ends."""
        return self._offset

    @property
    def next_sequence(self) -> int:
        """Sequence number of the next frame."""
        return self._sequence

    def known_meta(self) -> Meta:
        """The newest META.

        Raises:
            TraceError: None has been read yet.
        """
        if self.meta is None:
            raise TraceError(f"{self.file.name}: a step comes before META.")
        return self.meta

    # -- one frame -------------------------------------------------------------------------

    def _json(self, frame: Frame) -> dict[str, object]:
        return codec.parse(frame.json, f"{self.file.name}: frame at byte {frame.offset}")

    def read_step(self, frame: Frame) -> tuple[Step, RowsOf, int]:
        """A STEP frame: the step, which rows it has, and in how many ROWS frames."""
        fields = self._json(frame)
        where = f"{self.file.name}: step at byte {frame.offset}"
        step = codec.decode(Step, fields, where)
        check_step(step, self.known_meta(), self.file.size(), where)
        recorded = codec.decode(RowsOf, fields.get("rows", {}), where)
        parts = fields.get("parts", 0)
        if type(parts) is not int or not 0 <= parts <= frame.head.sequence:
            raise TraceError(f"{where}: parts is not a number of frames.")
        return step, recorded, parts

    def read_pass(self, frame: Frame) -> tuple[Step, RowsOf, int, int]:
        """A PASS frame: as a step, and the number of its lane."""
        step, recorded, parts = self.read_step(frame)
        name = self._json(frame).get("lane")
        return step, recorded, parts, self._lane_number(name if isinstance(name, str) else "")

    def step_frame(self, number: int) -> Frame:
        """The STEP frame of a step.

        Raises:
            MissingError: It is not in this trace, or damaged.
        """
        place = self.step_frames.get(number)
        if place is None:
            raise MissingError(
                f"{self.file.name}: step {number} is not in this trace ({self._what_there_is()})."
            )
        frame = self.file.frame(int(self.frames["offset"][place]))
        if frame is None or frame.head.kind != Kind.STEP:
            raise MissingError(f"{self.file.name}: step {number} is damaged.")
        return frame

    def _what_there_is(self) -> str:
        if not self.step_frames:
            return "it has no steps"
        return f"it has {len(self.step_frames)}, {min(self.step_frames)} to {max(self.step_frames)}"

    def _lane_number(self, name: str) -> int:
        names = [lane.name for lane in self.meta.lanes] if self.meta else []
        if name not in names:
            raise TraceError(f"{self.file.name}: a lane that META does not name.")
        return names.index(name) + 1


def _are_groups(groups: object) -> bool:
    return isinstance(groups, list) and all(
        isinstance(group, list) and all(type(n) is int for n in group) for group in groups
    )
