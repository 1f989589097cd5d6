"""What there is to find in the trace on a desk, looked for in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from kvtrace.errors import KvtraceError
from kvtrace.text import safe
from kvtrace.trace import Trace
from kvtrace_tui import findings
from kvtrace_tui.desk.desk import Desk
from kvtrace_tui.found import Answer, Found

Deed = Callable[[], None]


class Checking:
    """Puts findings on the desk: notes at once; what a check of the whole trace says, as it comes.

    The thread ends with the app.
    """

    def __init__(self, desk: Desk, shown: Deed, soon: Callable[[Deed], None]) -> None:
        """Nothing is looked for yet.

        Args:
            desk: With the trace.
            shown: Shows what the desk says.
            soon: Does something on the screen's own turn, if it is still open then.
        """
        self._desk = desk
        self._shown = shown
        self._soon = soon

    def begin(self) -> None:
        """Look for all there is."""
        desk = self._desk
        if desk.trace is None:
            return
        desk.found = findings.noted(desk.trace)
        if desk.recording.live or desk.trace.meta.lane(desk.cursor.lane) is None:
            return
        desk.answer = Answer("checking")
        arguments = desk.trace, desk.cursor.lane, asyncio.get_running_loop()
        Thread(target=self.check, args=arguments, daemon=True, name="findings").start()

    def note(self, trace: Trace) -> None:
        """Take up what was noted since."""
        for one in findings.noted(trace):
            self._desk.found = findings.merged(self._desk.found, one)

    def check(self, trace: Trace, lane: str, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the analysis, in this thread and on a reader of its own."""

        def call(deed: Deed) -> None:
            loop.call_soon_threadsafe(self._soon, deed)

        with suppress(RuntimeError):  # the loop is closed: so is the app
            try:
                another = Trace(trace.source.again())
            except KvtraceError as error:
                answer = Answer("could not check", (safe(str(error), 600),))
            else:
                answer = findings.search(another, lane, lambda one: call(lambda: self._met(one)))
            call(lambda: self._answered(answer))

    def _met(self, one: Found) -> None:
        self._desk.found = findings.merged(self._desk.found, one)
        self._shown()

    def _answered(self, answer: Answer) -> None:
        self._desk.answer = answer
        self._shown()
