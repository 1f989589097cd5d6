"""Reading frames: heads, JSON and unit CRCs. Allocates no more than the file holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

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
_SMALL_JSON = 1 << 20
_SPARE_BYTES = 48 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame whose head, JSON and unit CRCs have been checked; its payload has not."""

    offset: int
    head: Head
    json: bytes
    crcs: NDArray[np.uint32]

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
        self.name = safe(path.name or str(path))
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise _unreadable(safe(str(path)), error) from None
        try:
            header = os.pread(self._fd, HEADER_BYTES, 0)
        except OSError as error:
            raise _unreadable(self.name, error) from None
        version = header_version(header)
        if version != FORMAT_VERSION:
            raise _not_ours(self.name, version)
        self.version = FORMAT_VERSION
        self.hint = newest_slot(header)

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises:
            TraceError: The file ends before, or can't be read.
        """
        if count < 0 or offset < 0 or offset + count > self.size():
            raise TraceError(f"{self.name}: the file ends before byte {offset + count}.")
        parts = []
        while count:
            part = self._pread(offset, count)
            if not part:
                raise TraceError(f"{self.name}: the file ends before byte {offset + count}.")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Consecutive bytes of the file, straight into `parts`.

        Raises:
            TraceError: The file ends before, or can't be read.
        """
        count = sum(len(part) for part in parts)
        try:
            done = os.preadv(self._fd, parts, offset)
        except OSError:
            done = 0
        if done == count:
            return
        rest = self.read(offset, count)
        for part in parts:
            part[:] = rest[: len(part)]
            rest = rest[len(part) :]

    def _pread(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise TraceError(
                f"{self.name}: byte {offset} can't be read: {error.strerror}. "
                "Copy the file from a whole backup, or run `kvtrace recover`."
            ) from None

    def head(self, offset: int, size: int) -> Head | None:
        """The head of the frame at `offset`; None while the frame is not completely there.

        Args:
            offset: Where it starts.
            size: Bytes in the file.

        Raises:
            TraceError: What stands there is no frame.
        """
        if offset + HEAD_BYTES > size:
            return None
        head = unpack_head(self._pread(offset, HEAD_BYTES))
        if head is None:
            raise TraceError(f"{self.name}: no frame at byte {offset}: damaged.")
        return head if offset + head.total <= size else None

    def body(self, offset: int, head: Head) -> Frame:
        """The rest of a frame whose head is known.

        Raises:
            TraceError: It is damaged, or its JSON would take far more memory than the file.
        """
        body = self.read(offset + HEAD_BYTES, head.body_bytes)
        if crc32(body) != head.body_crc:
            raise TraceError(f"{self.name}: the frame at byte {offset} is damaged.")
        text = body[4 * head.units :]
        if len(text) > _SMALL_JSON and _memory_of(text) > _SPARE_BYTES + 3 * self.size():
            raise TraceError(f"{self.name}: the frame at byte {offset} has JSON that can't be.")
        return Frame(offset, head, text, np.frombuffer(body, "<u4", head.units))

    def frame(self, offset: int) -> Frame:
        """The whole frame at `offset`.

        Raises:
            TraceError: The file ends before, or it is damaged.
        """
        head = self.head(offset, self.size())
        if head is None:
            raise TraceError(f"{self.name}: the file ends inside the frame at byte {offset}.")
        return self.body(offset, head)

    def next_head(self, offset: int, sequence: int) -> int | None:
        """Where the first whole frame after `offset` starts that is `sequence` or later."""
        position, end = offset + ALIGN, self.size()
        while position + HEAD_BYTES <= end:
            chunk = self._pread(position, _SCAN_BYTES)
            lines = np.frombuffer(chunk, "u1")[: len(chunk) // ALIGN * ALIGN].reshape(-1, ALIGN)
            if not len(lines):
                return None
            magic = (lines[:, :4] == np.frombuffer(FRAME_MAGIC, "u1")).all(axis=1)
            for line in np.flatnonzero(magic).tolist():
                head = unpack_head(lines[line].tobytes())
                there: int = position + line * ALIGN
                if head and head.sequence >= sequence and there + head.total <= end:
                    return there
            position += len(lines) * ALIGN
        return None


def _memory_of(text: bytes) -> int:
    """About the bytes that parsed JSON takes in memory: containers, strings, numbers."""
    containers = text.count(b"[") + text.count(b"{")
    return 80 * containers + 40 * text.count(b'"') + 48 * text.count(b",")


def _unreadable(name: str, error: OSError | ValueError) -> TraceError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return TraceError(f"{name}: can't be read: {reason}. Give the name of a .kvt file.")


def _not_ours(name: str, version: int | None) -> TraceError:
    if version is None:
        return TraceError(
            f"{name}: not a kvtrace file (it does not start like one). "
            "Give the name of a .kvt file."
        )
    return VersionError(
        f"{name}: written in format {version}; this kvtrace reads up to {FORMAT_VERSION}. "
        "Upgrade with `pip install -U kvtrace`."
    )
