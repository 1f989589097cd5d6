"""Reading frames: heads, JSON and unit CRCs. Allocates no more than the file holds."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.errors import TraceError, VersionError
from kvtrace.files.layout import (
    FRAME_MAGIC,
    HEAD_BYTES,
    HEADER_BYTES,
    Head,
    header_version,
    newest_slot,
    unpack_head,
)
from kvtrace.files.reading.foreign import foreign
from kvtrace.text import safe
from kvtrace.trace.meta import FORMAT_VERSION

_SCAN_BYTES = 1 << 20
_SMALL_JSON = 1 << 20
_SPARE_BYTES = 48 << 20
_HEAD_LIKE = re.compile(FRAME_MAGIC + rb"(?=.{40}\0{16}.{4})", re.DOTALL)
"""A frame's magic, with the bytes that every head leaves empty."""


class Frame(Struct, frozen=True, eq=False):
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
    """A trace file opened for reading. Opening runs nothing and follows nothing.

    Attributes:
        lost: Why nothing can be read any more, because other bytes stand there now; or empty.
        identity: What the first frame that could be read carries, and all others must; None
            before.
    """

    def __init__(
        self, path: Path, *, without_start: bool = False, twin: FrameFile | None = None
    ) -> None:
        """Open and look at the first 64 bytes.

        Args:
            path: The file.
            without_start: If the first bytes are damaged or missing, begin at the first frame
                there is; see `start`.
            twin: Read the file that it has open, whatever `path` names by now.

        Raises:
            TraceError: It can't be opened, or is no trace.
            VersionError: It was written by a newer format.
        """
        self.name = safe(path.name or str(path))
        self.lost = ""
        self.identity: bytes | None = None if twin is None else twin.identity
        self._path = path
        self._fd: int = self._open(path) if twin is None else os.dup(twin._fd)
        try:
            header = _up_to(self._fd, HEADER_BYTES, 0)
        except OSError as error:
            raise _unreadable(self.name, error) from None
        version = header_version(header)
        self.version, self.start = FORMAT_VERSION, HEADER_BYTES
        self.lacks_start = version != FORMAT_VERSION
        self.hint = newest_slot(header) if version == FORMAT_VERSION else None
        if self.lacks_start:
            start = self.next_head(-1, 0) if without_start else None
            if start is None:
                raise _not_ours(self.name, header, version)
            self.start = start
        if self.identity is None:
            first = unpack_head(self._pread(self.start, HEAD_BYTES))
            self.identity = first.identity if first else None

    def _open(self, path: Path) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise _unreadable(safe(str(path)), error) from None
        kind = os.fstat(fd).st_mode
        if not stat.S_ISREG(kind):
            os.close(fd)
            raise TraceError(
                f"{self.name}: can't be read: {_name_of(kind)}. Give the name of a .kvt file."
            )
        return fd

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def again(self) -> FrameFile:
        """The same file for another thread.

        Raises:
            TraceError: Other bytes stand there now.
        """
        self._refuse_lost()
        return FrameFile(self._path, without_start=self.lacks_start, twin=self)

    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def moment(self) -> tuple[int, int]:
        """Bytes in the file, and when it was last written to."""
        now = os.fstat(self._fd)
        return now.st_size, now.st_mtime_ns

    def fate(self) -> str:
        """What became of the file's name since it was opened, as a sentence; empty: nothing."""
        try:
            there = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{self.name} was deleted or renamed; shown is what was opened"
        except OSError:
            return ""  # not to be known
        mine = os.fstat(self._fd)
        if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
            return ""
        return f"{self.name} is another file now; shown is the one that was opened"

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises:
            TraceError: The file ends before, or can't be read.
        """
        if count < 0 or offset < 0 or offset + count > self.size():
            raise TraceError(f"{self.name}: the file ends before byte {offset + count}.")
        found = self._pread(offset, count)
        if len(found) < count:
            raise TraceError(f"{self.name}: the file ends before byte {offset + count}.")
        return found

    def read_into(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Consecutive bytes of the file, straight into `parts`.

        Raises:
            TraceError: The file ends before, or can't be read.
        """
        count = sum(len(part) for part in parts)
        try:
            self._refuse_lost()
            done = os.preadv(self._fd, parts, offset)
        except OSError:
            done = 0
        if done == count:
            return
        rest = self.read(offset, count)
        for part in parts:
            part[:] = rest[: len(part)]
            rest = rest[len(part) :]

    def _refuse_lost(self) -> None:
        if self.lost:
            raise TraceError(self.lost)

    def _pread(self, offset: int, count: int) -> bytes:
        self._refuse_lost()
        try:
            return _up_to(self._fd, count, offset)
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
        if self.identity is None:
            self.identity = head.identity
        if head.identity != self.identity:
            raise TraceError(f"{self.name}: the frame at byte {offset} is of another trace.")
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
        """Where the first whole frame after `offset` starts that is `sequence` or later.

        At any byte: what was cut out or put in moved everything behind it.
        """
        position, end = offset + 1, self.size()
        while position + HEAD_BYTES <= end:
            position = self._behind_hole(position)
            chunk = self._pread(position, _SCAN_BYTES)
            for found in _HEAD_LIKE.finditer(chunk):
                head = unpack_head(chunk[found.start() : found.start() + HEAD_BYTES])
                there = position + found.start()
                if head is None or self.identity not in (None, head.identity):
                    continue
                if head.sequence >= sequence and there + head.total <= end:
                    return there
            if len(chunk) < HEAD_BYTES:
                return None
            position += len(chunk) - HEAD_BYTES + 1
        return None

    def _behind_hole(self, position: int) -> int:
        """The same place, or where the hole in the file ends that it is in."""
        try:
            return os.lseek(self._fd, position, os.SEEK_DATA)
        except OSError as error:
            nothing_follows = error.errno == errno.ENXIO
            return self.size() if nothing_follows else position


def _memory_of(text: bytes) -> int:
    """About the bytes that parsed JSON takes in memory: containers, strings, numbers."""
    containers = text.count(b"[") + text.count(b"{")
    return 80 * containers + 40 * text.count(b'"') + 48 * text.count(b",")


def _unreadable(name: str, error: OSError | ValueError) -> TraceError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return TraceError(f"{name}: can't be read: {reason}. Give the name of a .kvt file.")


def _name_of(kind: int) -> str:
    if stat.S_ISDIR(kind):
        return "Is a directory"
    return f"it is a {'pipe' if stat.S_ISFIFO(kind) else 'device'}, and a trace is a file"


def _not_ours(name: str, header: bytes, version: int | None) -> TraceError:
    if version is None:
        return TraceError(f"{name}: not a kvtrace file: {foreign(header)}")
    if not version:
        return TraceError(
            f"{name}: says that it is of format 0, which there never was: damaged. "
            "Use another copy, or `kvtrace recover`."
        )
    return VersionError(
        f"{name}: written in format {version}; this kvtrace reads up to {FORMAT_VERSION}. "
        "Upgrade with `pip install -U kvtrace`."
    )


def _up_to(fd: int, count: int, offset: int) -> bytes:
    """So many bytes of a file, fewer only where it ends: one read may give less."""
    found = os.pread(fd, count, offset)
    while len(found) < count:
        more = os.pread(fd, count - len(found), offset + len(found))
        if not more:
            break
        found += more
    return found
