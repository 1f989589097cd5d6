"""LANE frames: how other lanes compare with the cached one."""

from __future__ import annotations

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.files import codec
from kvtrace.files.comparison import ARRAYS, CELL_BYTES, LaneFields
from kvtrace.files.layout import Kind
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.frames import Frame
from kvtrace.files.reading.recent import Recent
from kvtrace.files.reading.steps import StepReader
from kvtrace.files.reading.units import UnitReader
from kvtrace.trace import LaneStep

_STEPS_KEPT = 512


class LaneReader:
    """Comparisons by lane and step."""

    __slots__ = ("_catalog", "_kept", "_offsets", "_seen", "_steps", "_units")

    def __init__(self, catalog: Catalog, steps: StepReader, units: UnitReader) -> None:
        self._catalog, self._steps, self._units = catalog, steps, units
        self._kept: Recent[int, LaneStep] = Recent(_STEPS_KEPT)
        self._offsets: dict[tuple[int, int], int] = {}
        self._seen = 0

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
        self._look_for_more()
        offset = self._offsets.get((self._catalog.lane_number(lane), step))
        if offset is None:
            return None
        what = f"step {step}, comparison with the {lane} lane"
        with self._catalog.damage.noting(f"{what}: damaged", offset):
            return self._kept.get_or(offset, lambda: self._read(lane, step, offset, what))

    def _read(self, lane: str, step: int, offset: int, what: str) -> LaneStep:
        frame = self._steps.frame(offset, what)
        where = f"{self._steps.name}: {what}"
        fields = codec.decode(LaneFields, codec.parse(frame.json, where), where)
        named = (fields.lane, fields.step) == (lane, step)
        sites = self._catalog.meta.sites
        sound = named and fields.cells >= 0 and fields.shape[0] <= len(sites)
        sound = sound and all(one.num_heads <= fields.shape[2] for one in sites[: fields.shape[0]])
        if not sound or fields.cells * CELL_BYTES > frame.head.payload_bytes:
            raise TraceError(f"{where}: a comparison that can't be.")
        return LaneStep(
            lane=lane,
            step=step,
            logits=fields.logits,
            elapsed_ns=fields.elapsed_ns,
            passes=fields.passes,
            **self._arrays(frame, fields, what),
        )

    def _arrays(self, frame: Frame, fields: LaneFields, what: str) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        start = 0
        for unit, (name, kind) in enumerate(ARRAYS.items()):
            size = fields.cells * kind.itemsize
            raw = self._units.raw(frame, start, size, unit, what)
            out[name] = np.frombuffer(raw, kind).reshape(fields.shape)
            start += size
        return out
