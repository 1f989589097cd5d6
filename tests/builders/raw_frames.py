"""The frames of a trace file as plain values, to damage them and write them with good checksums."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from kvtrace.files.layout import (
    HEAD_BYTES,
    HEADER_BYTES,
    NO_IDENTITY,
    Head,
    Kind,
    aligned,
    pack_slot,
    unpack_head,
)


class RawFrame(Struct, frozen=True):
    kind: int
    flags: int
    sequence: int
    json: bytes
    units: tuple[bytes, ...]
    offset: int = 0
    identity: bytes = NO_IDENTITY

    def head(self) -> Head:
        crcs = np.array([crc32(unit) for unit in self.units], "<u4").tobytes()
        return Head(
            self.kind,
            self.flags,
            self.sequence,
            len(self.json),
            len(self.units),
            sum(map(len, self.units)),
            crc32(crcs + self.json),
            self.identity,
        )

    def packed(self, **changes) -> bytes:
        """Its bytes; `changes` replace numbers of the head, whose own checksum stays good."""
        crcs = np.array([crc32(unit) for unit in self.units], "<u4").tobytes()
        body = replace(self.head(), **changes).pack() + crcs + self.json
        return _padded(_padded(body) + b"".join(self.units))


def _padded(raw: bytes) -> bytes:
    return raw.ljust(aligned(len(raw)), b"\0")


def split(path: Path) -> tuple[bytes, list[RawFrame]]:
    """The first 64 bytes, and every frame; units are cut by their checksums."""
    raw = path.read_bytes()
    frames, offset = [], HEADER_BYTES
    while offset < len(raw):
        head = unpack_head(raw[offset : offset + HEAD_BYTES])
        start = offset + HEAD_BYTES
        crcs = np.frombuffer(raw, "<u4", head.units, start).tolist()
        text = raw[start + 4 * head.units : start + head.body_bytes]
        payload = raw[offset + head.payload_start :][: head.payload_bytes]
        frames.append(
            RawFrame(
                *(head.kind, head.flags, head.sequence),
                text,
                _units(payload, crcs),
                offset,
                head.identity,
            )
        )
        offset += head.total
    return raw[:HEADER_BYTES], frames


def _units(payload: bytes, crcs: list[int]) -> tuple[bytes, ...]:
    units, start = [], 0
    for crc in crcs:
        end = start + 1
        while crc32(payload[start:end]) != crc:
            end += 1
            assert end <= len(payload)
        units.append(payload[start:end])
        start = end
    return tuple(units)


def joined(header: bytes, frames: list[RawFrame]) -> bytes:
    return header + b"".join(frame.packed() for frame in frames)


def pointed(header: bytes, frames: list[RawFrame]) -> bytes:
    """The file, with its hint slot at the INDEX wherever that is now."""
    index = next(place for place, frame in enumerate(frames) if frame.kind == Kind.INDEX)
    offset = len(header) + sum(len(frame.packed()) for frame in frames[:index])
    slot = pack_slot(offset, frames[index].sequence)
    return header[:16] + slot + bytes(24) + joined(b"", frames)
