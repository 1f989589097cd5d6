"""The recorder's ear: commands from the parent, kept until the loop asks between two steps.

When the pipe closes the parent is gone, and that is a stop as well: the step under way may end
and the trace is closed. Whoever does not come to that point in time ends the hard way. Knows no
torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from kvtrace.live.messages import Command, Lines, decode

GRACE = 8.0
"""Seconds that a stop may take once nobody is left to wait for it."""


class Stopped(BaseException):
    """A stop came before there was anything to record; no `except Exception` may eat it."""


class Orders:
    """What the user wants, as far as it was said."""

    def __init__(self, lines: Lines, *, paused: bool = False) -> None:
        self._lines = lines
        self._changed = threading.Condition()
        self._running = not paused
        self._steps_left = 0
        self._token: int | None = None
        self._recording = False
        self.stop_reason = ""

    def listen(self, fd: int) -> None:
        """Read commands from a pipe, in a thread of their own, until it closes."""
        threading.Thread(
            target=self._listen, args=(fd,), name="kvtrace-orders", daemon=True
        ).start()

    def obey_sigterm(self) -> None:
        """SIGTERM is a stop too; the terminal's ctrl-c is the parent's business."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)

    @property
    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.stop_reason)

    def begin(self) -> None:
        """Loading is over: from now on a stop waits for the end of a step.

        Raises:
            Stopped: It came already.
        """
        with self._changed:
            self._recording = True
        if self.stopped:
            raise Stopped(self.stop_reason)

    def await_turn(self, waiting: Callable[[], None]) -> bool:
        """Called between two steps; returns when the next may begin.

        Args:
            waiting: Called once, if it has to wait.

        Returns:
            False to stop.
        """
        with self._changed:
            if not (self._running or self._steps_left or self.stopped):
                waiting()
                self._changed.wait_for(lambda: self._running or self._steps_left or self.stopped)
            if not self._running:
                self._steps_left -= not self.stopped
            return not self.stopped

    def take_token(self) -> int | None:
        """The token the user chose to go on with, once."""
        with self._changed:
            token, self._token = self._token, None
            return token

    def hear(self, line: bytes) -> None:
        """Obey the command in a line; anything else is ignored."""
        command = decode(line)
        if isinstance(command, Command):
            self.obey(command)

    def obey(self, command: Command) -> None:
        """Take note of a command."""
        with self._changed:
            match command.name:
                case "run":
                    self._running = True
                case "pause":
                    self._running, self._steps_left = False, 0
                case "step":
                    self._running = False
                    self._steps_left += 1
                case "choose":
                    self._token = command.token
                    self._steps_left += not self._running
                case "stop":
                    self._stop("stopped by the user")
                case _:
                    pass
            self._changed.notify_all()

    def _stop(self, reason: str) -> None:
        """Within the lock: while loading there is nothing to close, so end here and now."""
        self.stop_reason = self.stop_reason or reason
        if not self._recording:
            os._exit(143)
        self._changed.notify_all()

    def _listen(self, fd: int) -> None:
        while chunk := _read(fd):
            for line in self._lines.feed(chunk):
                self.hear(line)
        with self._changed:
            self._stop("the program that started the recorder is gone")
        self._end_after_grace()

    def _terminated(self, _number: int, _where: FrameType | None) -> None:
        # the lock may be held by the very code this interrupts: only a thread may wait for it
        def stop() -> None:
            with self._changed:
                self._stop("stopped by SIGTERM")
            self._end_after_grace()

        threading.Thread(target=stop, name="kvtrace-sigterm", daemon=True).start()

    def _end_after_grace(self) -> None:
        threading.Event().wait(GRACE)
        os._exit(143)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""
