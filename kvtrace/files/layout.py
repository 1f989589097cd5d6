"""The bytes of a trace file: magic, hint slots and frame heads. Knows no meaning of a frame.

    64 bytes    magic, format version, two hint slots (offset, sequence, CRC) to the newest INDEX
    frames      each at a multiple of 64: head (64) · unit CRCs · JSON · pad · payload · pad

Everything is little-endian. All frames of a file carry the same random identity: one that was
copied into it from another trace is whole, and not its own. A unit is the piece of payload that
is read and checked in one go. The hint slots are an accelerator and the only bytes that are ever
rewritten.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from zlib import crc32

from msgspec import Struct

ALIGN = 64
MAGIC = b"\x89KVT\r\n\x1a\n"
_HEADER = struct.Struct("<8sH6x")
_SLOT = struct.Struct("<QQII")
SLOT_OFFSETS = (16, 40)
HEADER_BYTES = 64

_HEAD = struct.Struct("<4sHHQIIQI8s16xI")
HEAD_BYTES = _HEAD.size
FRAME_MAGIC = b"KVTF"
MUST_UNDERSTAND = 1
NO_IDENTITY = bytes(8)
"""What frames carry that were written before there were identities."""


class Kind(IntEnum):
    """What a frame holds."""

    META = 1
    STEP = 2
    ROWS = 3
    TILE = 4
    LANE = 5
    INDEX = 6
    NOTE = 7
    END = 8
    PASS = 9


class Head(Struct, frozen=True):
    """The head of a frame.

    Attributes:
        kind: A `Kind`, or a number this version does not know.
        flags: `MUST_UNDERSTAND` or 0.
        sequence: Frames are numbered from 0 without gaps.
        json_bytes: Length of the JSON.
        units: Number of payload units, each with a CRC.
        payload_bytes: Length of the payload.
        body_crc: CRC-32 of unit CRCs and JSON.
        identity: Of the file it was written to.
    """

    kind: int
    flags: int
    sequence: int
    json_bytes: int
    units: int
    payload_bytes: int
    body_crc: int
    identity: bytes = NO_IDENTITY

    @property
    def body_bytes(self) -> int:
        """Unit CRCs and JSON."""
        return 4 * self.units + self.json_bytes

    @property
    def payload_start(self) -> int:
        """Where the payload starts, from the start of the frame."""
        return aligned(HEAD_BYTES + self.body_bytes)

    @property
    def total(self) -> int:
        """Bytes up to the next frame."""
        return aligned(self.payload_start + self.payload_bytes)

    def pack(self) -> bytes:
        """The 64 bytes."""
        packed = _HEAD.pack(
            FRAME_MAGIC,
            self.kind,
            self.flags,
            self.sequence,
            self.json_bytes,
            self.units,
            self.payload_bytes,
            self.body_crc,
            self.identity,
            0,
        )
        return packed[:-4] + struct.pack("<I", crc32(packed[:-4]))


def aligned(offset: int) -> int:
    """The next multiple of 64."""
    return -(-offset // ALIGN) * ALIGN


def unpack_head(raw: bytes) -> Head | None:
    """The head in 64 bytes; None if they are none, or damaged."""
    if len(raw) != HEAD_BYTES or raw[:4] != FRAME_MAGIC:
        return None
    *fields, crc = _HEAD.unpack(raw)
    if crc32(raw[:-4]) != crc:
        return None
    return Head(*fields[1:])


def new_identity() -> bytes:
    """An identity for a new file: nothing of the machine, and of no generator that a user seeds."""
    return os.urandom(len(NO_IDENTITY))


def pack_header(version: int) -> bytes:
    """The first 64 bytes of a new file."""
    return _HEADER.pack(MAGIC, version).ljust(HEADER_BYTES, b"\0")


def header_version(raw: bytes) -> int | None:
    """Format version of a file that starts with `raw`; None if it is no trace."""
    if len(raw) < HEADER_BYTES or raw[:8] != MAGIC:
        return None
    version: int = _HEADER.unpack(raw[: _HEADER.size])[1]
    return version


def pack_slot(offset: int, sequence: int) -> bytes:
    """A hint slot."""
    head = struct.pack("<QQ", offset, sequence)
    return _SLOT.pack(offset, sequence, crc32(head), 0)


def newest_slot(header: bytes) -> int | None:
    """Offset of the newest INDEX according to the hint slots; None without a good slot."""
    best: tuple[int, int] | None = None
    for start in SLOT_OFFSETS:
        offset, sequence, crc, _ = _SLOT.unpack_from(header, start)
        if offset and crc32(header[start : start + 16]) == crc:
            best = max(best or (0, 0), (sequence, offset))
    return best[1] if best else None
