"""The recorder's mouth: events to the parent, never mixed up by threads or forks."""

from __future__ import annotations

import os
import threading

from kvtrace.live.messages import Event, encode


class Voice:
    """Sends events; a parent that is gone is heard of elsewhere, and no error here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def say(self, event: Event) -> None:
        """Send one event; a process that somebody forked off us has no voice."""
        if os.getpid() != self._pid:
            return
        line = memoryview(encode(event))
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError:
                return
