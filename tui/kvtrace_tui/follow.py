"""A trace that may not exist yet, may grow, and may have a recorder behind it.

Asked every now and then, never waits. Knows nothing of Textual.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtrace.errors import KvtraceError, VersionError
from kvtrace.text import safe
from kvtrace.trace import Trace
from kvtrace_tui.desk.desk import Recording

if TYPE_CHECKING:
    from kvtrace_tui.live_run import LiveEvent, LiveRun

Opener = Callable[[], Trace]

LOG_LINES = 5000
QUIET_S = 10.0
"""Seconds without growth after which an unfinished file counts as cut off."""


class Follower:
    """Follows one trace.

    Attributes:
        trace: None until it can be opened.
        progress: What is being done while there is nothing to show, and the share done of it.
        log: What the recorder printed, made safe, oldest first.
        failure: The recorder's last event when it gave up.
        fate: What became of the file's name since it was opened; empty: nothing.
        ended: Why the recorder ended; empty while it has not.
    """

    def __init__(
        self,
        opener: Opener,
        live: LiveRun | None = None,
        trace: Trace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener = opener
        self._live = live
        self._clock = clock
        self._grown = -QUIET_S
        self._paused = False
        self._started = False
        self.trace = trace
        self.progress: tuple[str, float | None] = ("starting the recorder", None)
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.failure: LiveEvent | None = None
        self.fate = ""
        self.ended = ""

    @property
    def live(self) -> LiveRun | None:
        """The recorder's end, while it takes commands."""
        return None if self.ended or self.failure else self._live

    @property
    def listens(self) -> bool:
        """Whether what a recorder prints comes here: a trace does not hold it."""
        return self._live is not None

    @property
    def recording(self) -> Recording:
        """How the trace stands."""
        if self.failure is not None:
            return Recording.FAILED
        if self.live is not None:
            if not self._started:
                return Recording.LOADING
            return Recording.PAUSED if self._paused else Recording.RUNNING
        if self.trace is not None and self.trace.ending is None:
            quiet = bool(self.ended) or self._clock() - self._grown >= QUIET_S
            return Recording.INCOMPLETE if quiet else Recording.GROWING
        return Recording.RECORDED

    @property
    def may_change(self) -> bool:
        """Whether the recording may go on."""
        return self.live is not None or self.trace is None or self.trace.ending is None

    def poll(self) -> bool:
        """Hear the recorder and look at the file; whether anything changed.

        Raises:
            TraceError: There is no recorder, and what should be a trace is none.
        """
        before = self.recording, self.fate
        live = self.live
        events = list(live.poll()) if live is not None else []
        for event in events:
            self._hear(event)
        grown = self._look()
        return bool(events) or grown or (self.recording, self.fate) != before

    def send(self, name: str, token: int = -1) -> None:
        """Send a command to the recorder, if there still is one."""
        live = self.live
        if live is None:
            return
        if name in ("run", "step", "choose"):
            self._paused = False
        live.send(name, token)

    def _hear(self, event: LiveEvent) -> None:
        from kvtrace_tui.live_run import LiveKind  # only where there is a recorder

        match event.kind:
            case LiveKind.PROGRESS:
                self.progress = (safe(event.text), event.share)
            case LiveKind.LOG:
                self.log.extend(safe(line, 1000) for line in event.text.splitlines() or [""])
            case LiveKind.STEP:
                self._started, self._paused = True, False
            case LiveKind.PAUSED:
                self._started, self._paused = True, True
            case LiveKind.ENDED:
                self.ended = safe(event.text) or "ended"
            case LiveKind.FAILED:
                self.failure = event
                self.log.append(safe(event.text, 1000))

    def _look(self) -> bool:
        """Open the file, or see whether it grew."""
        if self.trace is None:
            if self._live is not None and not (self._started or self.ended):
                return False  # what is there now is an earlier run's, about to be replaced
            self.trace = self._opened()
            return self.trace is not None
        self.fate = self.trace.source.fate
        grown = self.trace.source.refresh()
        if grown:
            self._grown = self._clock()
        return grown

    def _opened(self) -> Trace | None:
        """None while a recorder may still be making it."""
        try:
            trace = self._opener()
        except VersionError:
            raise
        except (KvtraceError, OSError):
            if self._live is None:
                raise
            return None
        return trace if trace.numbers or self.live is None else None
