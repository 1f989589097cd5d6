"""Draws what the same key leads to next, while the keys are quiet.

A picture is made from a trace and a cursor, and whoever goes a step on mostly goes another one.
Parts are drawn one after the other with pauses, so that any other key is answered in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.timer import Timer

from kvtrace.errors import KvtraceError
from kvtrace.trace import Trace
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.panes.pane import Pane

_QUIET_S, _PAUSE_S = 0.04, 0.002

SetTimer = Callable[[float, Callable[[], None]], Timer]


class Ahead:
    """One place at a time; another move forgets it."""

    def __init__(self, set_timer: SetTimer) -> None:
        self._set_timer = set_timer
        self._timer: Timer | None = None

    def expect(
        self, before: Cursor | None, now: Cursor, trace: Trace, panes: Sequence[Pane]
    ) -> None:
        """Draw, soon, what the move from `before` to `now` leads to when it is made once more.

        Without a move before it, the likeliest one is a step on.
        """
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if before != now:
            self._later(_QUIET_S, lambda: self._begin(before, now, trace, panes))

    def _begin(
        self, before: Cursor | None, now: Cursor, trace: Trace, panes: Sequence[Pane]
    ) -> None:
        try:
            step_on = moves.by_steps(now, trace, 1)
            further = step_on if before is None else moves.again(before, now, trace)
        except KvtraceError:
            return  # the pane that can't show it says so when it is gone to
        if further is not None:
            self._next(trace, further, panes)

    def _next(self, trace: Trace, further: Cursor, panes: Sequence[Pane]) -> None:
        panes[0].foresee(trace, further)
        if len(panes) > 1:
            self._later(_PAUSE_S, lambda: self._next(trace, further, panes[1:]))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timer = self._set_timer(seconds, call)
