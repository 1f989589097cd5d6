"""LANE frames: how other lanes compare with the cached one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.files import codec
from kvtrace.files.catalog import Catalog
from kvtrace.files.comparison import ARRAYS, CELL_BYTES, LaneFields
from kvtrace.files.extents import RowsOf
from kvtrace.files.frames import Frame
from kvtrace.files.kept import Kept
from kvtrace.files.layout import Kind
from kvtrace.files.steps import StepReader
from kvtrace.files.units import UnitReader
from kvtrace.trace import LaneStep

_ENTRIES_KEPT = 512


@dataclass(frozen=True, slots=True, eq=False)
class LaneEntry:
    """A LANE frame.

    Attributes:
        frame: It.
        fields: What its JSON says.
        recorded: Which rows of the lane follow.
        parts: Number of its ROWS frames.
        size, units: Of the arrays before the rows.
    """

    frame: Frame
    fields: LaneFields
    recorded: RowsOf
    parts: int
    size: int
    units: int


class LaneReader:
    """Comparisons by lane and step."""

    __slots__ = ("_catalog", "_entries", "_offsets", "_seen", "_steps", "_units")

    def __init__(self, catalog: Catalog, steps: StepReader, units: UnitReader) -> None:
        self._catalog, self._steps, self._units = catalog, steps, units
        self._entries: Kept[int, LaneEntry] = Kept(_ENTRIES_KEPT)
        self._offsets: dict[tuple[int, int], int] = {}
        self._seen = 0

    def entry(self, lane: str, step: int) -> LaneEntry | None:
        """The LANE frame of a step; None: not compared.

        Raises:
            TraceError: It is damaged.
        """
        self._look_for_more()
        offset = self._offsets.get((self._catalog.lane_number(lane), step))
        if offset is None:
            return None
        return self._entries.get_or(offset, lambda: self._read(lane, step, offset))

    def _read(self, lane: str, step: int, offset: int) -> LaneEntry:
        what = f"step {step}, {lane} lane"
        frame = self._steps.frame(offset, what)
        where = f"{self._steps.name}: {what}"
        raw = codec.parse(frame.json, where)
        fields = codec.decode(LaneFields, raw, where)
        recorded = codec.decode(RowsOf, raw.get("rows", {}), where)
        cells = fields.cells
        size = cells * CELL_BYTES
        named = (fields.lane, fields.step) == (lane, step)
        if not named or cells < 0 or size > frame.head.payload_bytes:
            raise TraceError(f"{where}: a comparison that can't be.")
        units = len(ARRAYS) if cells else 0
        return LaneEntry(frame, fields, recorded, codec.count(raw, "parts"), size, units)

    def _look_for_more(self) -> None:
        frames = self._catalog.frames.rows[self._seen :]
        self._seen += len(frames)
        mine = frames[frames["kind"] == Kind.LANE]
        keys = zip(mine["lane"].tolist(), mine["step"].tolist(), strict=True)
        self._offsets.update(zip(keys, mine["offset"].tolist(), strict=True))

    def comparison(self, lane: str, step: int) -> LaneStep | None:
        """The comparison of a step; None: not compared.

        Raises:
            TraceError: It is damaged.
        """
        entry = self.entry(lane, step)
        if entry is None:
            return None
        arrays = self._arrays(entry, f"step {step}, comparison with the {lane} lane")
        return LaneStep(
            lane=lane,
            step=step,
            rows_stored=entry.fields.stored,
            logits=entry.fields.logits,
            elapsed_ns=entry.fields.elapsed_ns,
            passes=entry.fields.passes,
            **arrays,
        )

    def _arrays(self, entry: LaneEntry, what: str) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        start = 0
        for unit, (name, kind) in enumerate(ARRAYS.items()):
            size = entry.size // CELL_BYTES * kind.itemsize
            raw = self._units.raw(entry.frame, start, size, unit, what)
            out[name] = np.frombuffer(raw, kind).reshape(entry.fields.shape)
            start += size
        return out
