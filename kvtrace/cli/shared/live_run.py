"""A recording session as the screen wants to see it: the joint between the two."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace.live.messages import Ended, Event, Failed, Paused, Progress, Said, Stepped
from kvtrace.live.session import Session
from kvtrace_tui.live_run import LiveEvent, LiveKind


class SessionRun:
    """Implements `kvtrace_tui.live_run.LiveRun` over a session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def poll(self) -> Sequence[LiveEvent]:
        """What happened since the last call."""
        found = [_live(event) for event in self._session.poll()]
        return [event for event in found if event is not None]

    def send(self, name: str, token: int = -1) -> None:
        """Ask for something."""
        self._session.send(name, token)

    def close(self) -> None:
        """End it."""
        self._session.close()


def _live(event: Event) -> LiveEvent | None:
    """None for what the screen need not know."""
    match event:
        case Progress():
            live = LiveEvent(LiveKind.PROGRESS, event.text, event.share)
        case Said():
            live = LiveEvent(LiveKind.LOG, event.text)
        case Stepped():
            live = LiveEvent(LiveKind.STEP)
        case Paused():
            live = LiveEvent(LiveKind.PAUSED)
        case Ended():
            text = event.reason + (f": {event.text}" if event.text else "")
            live = LiveEvent(LiveKind.ENDED, text)
        case Failed():
            live = LiveEvent(LiveKind.FAILED, event.text)
        case _:
            return None
    return live
