"""INDEX frames: what was added since the INDEX before, so that opening reads no step.

A damaged INDEX costs time, never data: the frames themselves are read instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.errors import TraceError
from kvtrace.files import codec
from kvtrace.files.layout import Kind
from kvtrace.files.reading.frames import Frame, FrameFile
from kvtrace.files.tables import FRAMES, GROUP_WRITES, Group
from kvtrace.trace import OVERVIEW

_TABLES = (FRAMES, OVERVIEW, GROUP_WRITES)


class IndexPlace(Struct, frozen=True, omit_defaults=True):
    """The JSON of an INDEX frame; its payload is three tables and the texts, each one unit.

    Attributes:
        previous: Offset of the INDEX before; 0: none.
        sizes: Rows of the tables, then bytes of the texts; an empty one has no unit.
        groups: Every group of cache layers so far.
    """

    previous: int
    sizes: tuple[int, ...]
    groups: tuple[Group, ...]


class IndexPart(Struct, frozen=True, eq=False):
    """One INDEX frame, read and checked; of its texts only where they are."""

    frame: Frame
    place: IndexPlace
    frames: NDArray[np.void]
    overview: NDArray[np.void]
    writes: NDArray[np.void]
    text_start: int

    def texts(self, file: FrameFile) -> Mapping[int, str]:
        """Text of token ids first seen since the INDEX before.

        Raises:
            TraceError: They are damaged.
        """
        count = self.place.sizes[3]
        if not count:
            return {}
        raw = file.read(self.text_start, count)
        where = f"{file.name}: texts of the index at byte {self.frame.offset}"
        if crc32(raw) != self.frame.crcs[-1]:
            raise TraceError(f"{where}: damaged.")
        return codec.decode(_Texts, {"texts": codec.parse(raw, where)}, where).texts


class _Texts(Struct, frozen=True, omit_defaults=True):
    texts: Mapping[int, str]


def read_chain(file: FrameFile, offset: int) -> list[IndexPart]:
    """The INDEX frame at `offset` and those before it, oldest first.

    Raises:
        TraceError: One is damaged, or is none.
    """
    chain: list[IndexPart] = []
    end = file.size()
    while offset:
        frame = file.frame(offset)
        if frame.head.kind != Kind.INDEX or frame.end > end:
            raise TraceError(f"{file.name}: the index at byte {offset} is damaged.")
        part = _read(file, frame)
        chain.append(part)
        end, offset = offset, part.place.previous
    return chain[::-1]


def _read(file: FrameFile, frame: Frame) -> IndexPart:
    where = f"{file.name}: index at byte {frame.offset}"
    place = codec.decode(IndexPlace, codec.parse(frame.json, where), where)
    sizes = place.sizes
    if len(sizes) != 4 or min(sizes) < 0 or place.previous < 0:
        raise TraceError(f"{where}: sizes that can't be.")
    wanted = [rows * dtype.itemsize for rows, dtype in zip(sizes[:3], _TABLES, strict=True)]
    units = sum(1 for size in sizes if size)
    if sum(wanted) + sizes[3] != frame.head.payload_bytes or units != frame.head.units:
        raise TraceError(f"{where}: sizes that can't be.")
    tables, at, unit = [], frame.payload, 0
    for size, dtype in zip(wanted, _TABLES, strict=True):
        raw = file.read(at, size)
        if size and crc32(raw) != frame.crcs[unit]:
            raise TraceError(f"{where}: damaged.")
        unit += bool(size)
        at += size
        tables.append(np.frombuffer(raw, dtype))
    return IndexPart(frame, place, tables[0], tables[1], tables[2], at)
