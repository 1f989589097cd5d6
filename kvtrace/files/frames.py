"""Reading frames: heads, JSON and checked payload units. Allocates no more than the file holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from kvtrace.errors import TraceError, VersionError
from kvtrace.files.layout import (
    ALIGN,
    FRAME_MAGIC,
    HEAD_BYTES,
    HEADER_BYTES,
    Head,
    header_version,
    newest_slot,
    unpack_head,
)
from kvtrace.text import safe
from kvtrace.trace.meta import FORMAT_VERSION

_SCAN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose head, JSON and unit CRCs have been checked; its payload has not."""

    offset: int
    head: Head
    json: bytes
    crcs: tuple[int, ...]

    @property
    def payload(self) -> int:
        """Where its payload starts in the file."""
        return self.offset + self.head.payload_start

    @property
    def end(self) -> int:
        """Where the next frame starts."""
        return self.offset + self.head.total


class FrameFile:
    """A trace file opened for reading. Opening runs nothing and follows nothing."""

    def __init__(self, path: Path) -> None:
        """Open and look at the first 64 bytes.

        Raises:
            TraceError: It can't be opened, or is no trace.
            VersionError: It was written by a newer format.
        """
        self.name = safe(path.name)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise TraceError(
                f"{safe(str(path))}: can't be opened: {error.strerror}. Give the name of a .kvt file."
            ) from None
        try:
            header = os.pread(self._fd, HEADER_BYTES, 0)
        except OSError as error:
            os.close(self._fd)
            raise TraceError(
                f"{self.name}: can't be read: {error.strerror}. Give the name of a .kvt file."
            ) from None
        self.version = header_version(header)
        if self.version != FORMAT_VERSION:
            os.close(self._fd)
            raise _not_ours(self.name, self.version)
        self.hint = newest_slot(header)

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def hint_now(self) -> int | None:
        """The newest hint slot, read again."""
        return newest_slot(os.pread(self._fd, HEADER_BYTES, 0))

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises:
            TraceError: The file ends before.
        """
        if count < 0 or offset < 0 or offset + count > self.size():
            raise TraceError(f"{self.name}: the file ends before byte {offset + count}.")
        parts = []
        while count:
            part = os.pread(self._fd, count, offset)
            if not part:
                raise TraceError(f"{self.name}: the file ends before byte {offset + count}.")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def frame(self, offset: int, size: int | None = None) -> Frame | None:
        """The frame at `offset`; None while it is not completely there.

        Raises:
            TraceError: What stands there is no frame, or is damaged.
        """
        end = self.size() if size is None else size
        if offset + HEAD_BYTES > end:
            return None
        head = unpack_head(os.pread(self._fd, HEAD_BYTES, offset))
        if head is None:
            raise TraceError(f"{self.name}: no frame at byte {offset}: damaged.")
        if offset + head.total > end:
            return None
        body = self.read(offset + HEAD_BYTES, head.body_bytes)
        if crc32(body) != head.body_crc:
            raise TraceError(f"{self.name}: the frame at byte {offset} is damaged.")
        crcs = np.frombuffer(body, "<u4", head.units)
        return Frame(offset, head, body[4 * head.units :], tuple(crcs.tolist()))

    def next_frame(self, offset: int, sequence: int) -> tuple[int, int] | None:
        """(offset, sequence) of the next good head that is later in both; None: there is none."""
        position, end = offset + ALIGN, self.size()
        while position + HEAD_BYTES <= end:
            chunk = os.pread(self._fd, _SCAN_BYTES, position)
            lines = np.frombuffer(chunk, "u1")[: len(chunk) // ALIGN * ALIGN].reshape(-1, ALIGN)
            magic = (lines[:, :4] == np.frombuffer(FRAME_MAGIC, "u1")).all(axis=1)
            for line in np.flatnonzero(magic).tolist():
                head = unpack_head(lines[line].tobytes())
                there = position + line * ALIGN
                if head and head.sequence > sequence and there + head.total <= end:
                    return there, head.sequence
            if not len(lines):
                return None
            position += len(lines) * ALIGN
        return None


def _not_ours(name: str, version: int | None) -> TraceError:
    if version is None:
        return TraceError(f"{name}: not a kvtrace file (it does not start like one).")
    return VersionError(
        f"{name}: written in format {version}; this kvtrace reads up to {FORMAT_VERSION}. "
        "Upgrade with `pip install -U kvtrace`."
    )
