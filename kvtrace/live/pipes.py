"""The ends of the pipes between a recording process and its parent. Never blocks the parent."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence

_CHUNK = 1 << 16
_CHUNKS_AT_ONCE = 64


class Inlet:
    """The reading end of a pipe, without waiting."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.ended = False

    def read(self) -> bytes:
        """What is there now; a flood is left for the next call."""
        chunks: list[bytes] = []
        while not self.ended and len(chunks) < _CHUNKS_AT_ONCE:
            try:
                chunk = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self.ended = not chunk
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Let go; safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.ended = -1, True


class Outlet:
    """The writing end of a pipe, without waiting: what does not fit is sent later."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._waiting = bytearray()

    def send(self, data: bytes = b"") -> None:
        """Send what waits, then `data`; a reader that is gone is no error."""
        self._waiting += data
        while self._waiting and self.fd >= 0:
            try:
                sent = os.write(self.fd, self._waiting[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            del self._waiting[:sent]

    def close(self) -> None:
        """Let go; safe to call twice."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
        self.fd = -1


def wait(inlets: Sequence[Inlet], seconds: float) -> None:
    """Until one of them has something, or the time is over."""
    fds = [inlet.fd for inlet in inlets if not inlet.ended]
    select.select(fds, [], [], seconds)


def has_more(inlets: Sequence[Inlet]) -> bool:
    """Whether any of them has something to read now, its end included."""
    fds = [inlet.fd for inlet in inlets if not inlet.ended]
    return bool(fds and select.select(fds, [], [], 0)[0])
