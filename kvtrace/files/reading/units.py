"""Reading payload units. Nothing leaves here that was not held against its checksum."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.files.extents import Extent
from kvtrace.files.reading.frames import Frame, FrameFile
from kvtrace.trace import dtypes
from kvtrace.trace.dtypes import Array

_PARTS_AT_ONCE = 512


class UnitReader:
    """Reads extents of frames; says what was damaged to `report`."""

    __slots__ = ("_file", "_report")

    def __init__(self, file: FrameFile, report: Callable[[str, int], None]) -> None:
        self._file = file
        self._report = report

    def read(self, frame: Frame, extent: Extent, what: str, head: int | None = None) -> Array:
        """An extent, checked: [sequences, heads, rows, dim]; with `head` [sequences, 1, ..].

        Args:
            frame: That holds it.
            extent: Where.
            what: To name it by when it is damaged.
            head: Only this one; only its units are read, where heads have their own.

        Raises:
            TraceError: It is damaged.
        """
        self._inside(frame, extent, what)
        sequences, heads, rows, dim = extent.shape
        kind = dtypes.storage(extent.dtype)
        if head is None or not extent.split:
            raw = self._file.read(frame.payload + extent.start, extent.size)
            self._check(memoryview(raw), frame, extent.unit, extent.units, what)
            whole = np.frombuffer(raw, kind).reshape(extent.shape)
            return whole if head is None else whole[:, head : head + 1]
        size = extent.size // extent.units
        parts = []
        for unit in range(head, sequences * heads, heads):
            raw = self._file.read(frame.payload + extent.start + unit * size, size)
            self._check(memoryview(raw), frame, extent.unit + unit, 1, what)
            parts.append(raw)
        return np.frombuffer(b"".join(parts), kind).reshape(sequences, 1, rows, dim)

    def read_into(
        self,
        frame: Frame,
        extent: Extent,
        unit: int,
        targets: list[memoryview],
        what: str,
    ) -> None:
        """Consecutive units of a split extent, straight into `targets`, one each.

        Raises:
            TraceError: They are damaged.
        """
        self._inside(frame, extent, what)
        start = frame.payload + extent.start + unit * (extent.size // extent.units)
        for first in range(0, len(targets), _PARTS_AT_ONCE):
            some = targets[first : first + _PARTS_AT_ONCE]
            self._file.read_into(start, some)
            start += sum(len(target) for target in some)
        crcs = frame.crcs[extent.unit + unit :][: len(targets)].tolist()
        if len(crcs) != len(targets) or any(map(_differs, targets, crcs)):
            raise self._damaged(frame, what)

    def raw(self, frame: Frame, start: int, size: int, unit: int, what: str) -> bytes:
        """One unit as bytes, `start` bytes into the payload.

        Raises:
            TraceError: It is damaged.
        """
        if start < 0 or size < 0 or start + size > frame.head.payload_bytes:
            raise self._damaged(frame, what)
        raw = self._file.read(frame.payload + start, size)
        if size:
            self._check(memoryview(raw), frame, unit, 1, what)
        return raw

    def _inside(self, frame: Frame, extent: Extent, what: str) -> None:
        if extent.start + extent.size > frame.head.payload_bytes:
            raise self._damaged(frame, what)

    def _check(self, raw: memoryview, frame: Frame, unit: int, units: int, what: str) -> None:
        crcs = frame.crcs[unit : unit + units].tolist()
        size = len(raw) // units
        parts = [raw[start : start + size] for start in range(0, len(raw), size)]
        if len(crcs) != units or any(map(_differs, parts, crcs)):
            raise self._damaged(frame, what)

    def _damaged(self, frame: Frame, what: str) -> TraceError:
        self._report(f"{what}: damaged", frame.offset)
        return TraceError(
            f"{self._file.name}: {what}: damaged at byte {frame.offset}; "
            "its checksum does not fit. The rest of the trace can be used."
        )


def _differs(raw: memoryview, crc: int) -> bool:
    return crc32(raw) != crc
