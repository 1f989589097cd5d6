"""Appending bytes to a file so that whole frames are there or nothing is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kvtrace.errors import OutputExistsError, WriteError
from kvtrace.paths import leads_nowhere
from kvtrace.text import safe
from kvtrace.units import byte_size

_SYNC_SECONDS = 1.0
_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
}


class Write(Protocol):
    """`os.pwrite`, or a stand-in that fails on purpose."""

    def __call__(self, fd: int, buffer: bytes | memoryview, offset: int, /) -> int:
        """Write some of `buffer`; returns how many bytes."""


class Appender:
    """An append-only file: locked, synced every second, whole writes or none."""

    def __init__(self, path: Path, *, write: Write = os.pwrite, append: bool = False) -> None:
        """Open it.

        Args:
            path: The file; it must not exist, or with `append` must.
            write: How bytes are written.
            append: Go on with an existing file.

        Raises:
            OutputExistsError: It exists, can't be created, or somebody else is writing it.
        """
        self.path = path
        self._write = write
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if append else os.O_CREAT | os.O_EXCL)
        self._fd = _opened(path, flags)
        _lock(self._fd, path)
        self.size = os.fstat(self._fd).st_size
        self.failed = False
        self._sync_error: OSError | None = None
        self._dirty = False
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_now_and_then, daemon=True)
        self._syncer.start()

    def append(self, data: bytes) -> int:
        """Append all of `data`; returns where it starts.

        Raises:
            WriteError: It did not fit; the file is as it was.
        """
        start = self.size
        self._put(data, start)
        self.size = start + len(data)
        self._dirty = True
        return start

    def rewrite(self, data: bytes, offset: int) -> None:
        """Rewrite bytes in place; only the hint slots are.

        Raises:
            WriteError: The system refused.
        """
        self._put(data, offset)

    def check_there(self) -> None:
        """That somebody can still open what was written.

        Raises:
            WriteError: The file was removed, or another one put in its place.
        """
        ours = os.fstat(self._fd)
        if ours.st_nlink:
            return  # a file that was moved is there, too
        with contextlib.suppress(OSError):
            if os.path.samestat(ours, self.path.stat()):
                return
        raise WriteError(
            f"{safe(str(self.path))}: the file was removed or replaced while it was written, and "
            f"{byte_size(self.size)} of recording with it. Leave it in place, and run again."
        )

    def _put(self, data: bytes, offset: int) -> None:
        if self.failed:
            raise WriteError(f"{safe(str(self.path))}: an earlier write failed; nothing is added.")
        try:
            if self._sync_error is not None:
                raise self._sync_error
            self._put_all(memoryview(data), offset)
        except OSError as error:
            self.failed = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            todo = _REMEDIES.get(error.errno or 0, "Check the disk")
            raise WriteError(
                f"{safe(str(self.path))}: {error.strerror} after {byte_size(self.size)}; "
                f"writing stopped, everything up to there is kept. {todo} and run again."
            ) from None

    def _put_all(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                wrote = self._write(self._fd, data[done:], offset + done)
            except InterruptedError:
                continue
            if wrote <= 0:
                raise OSError(errno.EIO, "the system wrote nothing")
            done += wrote

    def _sync_now_and_then(self) -> None:
        while not self._closing.wait(_SYNC_SECONDS):
            if self._dirty:
                self._dirty = False
                try:
                    os.fsync(self._fd)
                except OSError as error:
                    self._sync_error = error

    def close(self) -> None:
        """Sync and let go of the file; safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._syncer.join()
        with contextlib.suppress(OSError):
            os.fsync(self._fd)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a fork that lives on has the file open, too
        os.close(self._fd)


def check_other(output: Path, sources: Sequence[Path]) -> None:
    """That what is about to be replaced is not what is read: there may be more in it.

    Raises:
        OutputExistsError: It is.
    """
    for source in sources:
        with contextlib.suppress(OSError, ValueError):
            if output.samefile(source):
                raise OutputExistsError(
                    f"{safe(str(output))}: is a trace that is read here, and those are never "
                    "changed; -o names another."
                )


def check_free(path: Path) -> None:
    """That nobody is writing an existing file which is about to be replaced.

    Raises:
        OutputExistsError: Somebody is.
    """
    fd = _opened(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    _lock(fd, path)
    os.close(fd)


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o644)
    except FileExistsError:
        said = "the file exists; --force replaces it, -o names another"
        if leads_nowhere(path):
            said = "is a link that leads to no file; remove it, or name another file"
        raise OutputExistsError(f"{safe(str(path))}: {said}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputExistsError(
            f"{safe(str(path))}: can't be opened for writing: {reason}; -o names another."
        ) from None


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise OutputExistsError(
            f"{safe(str(path))}: another process is writing this trace; wait until it ends."
        ) from None
