"""A recording that is still going on, as the screen sees it: events in, commands out.

The steps themselves travel in the trace file. Knows nothing of processes, pipes or models;
whoever starts a recording wraps it in this.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct


class LiveKind(StrEnum):
    """What an event says."""

    PROGRESS = "progress"
    LOG = "log"
    STEP = "step"
    PAUSED = "paused"
    ENDED = "ended"
    FAILED = "failed"


class LiveEvent(Struct, frozen=True):
    """Something happened in the recording.

    Attributes:
        kind: What it is about.
        text: PROGRESS: what is being done. LOG: one line that was printed. ENDED: the reason.
            FAILED: the one line for people. Raw: made safe before it is shown.
        share: PROGRESS: done of it, 0 to 1; None when unknown.
    """

    kind: LiveKind
    text: str = ""
    share: float | None = None


class LiveRun(Protocol):
    """The recording's end that the screen holds. Nothing here blocks, except `close`."""

    def poll(self) -> Sequence[LiveEvent]:
        """What happened since the last call, oldest first; the last one is ENDED or FAILED."""

    def send(self, name: str, token: int = -1) -> None:
        """Ask for "run", "pause", "step", "stop", or "choose" with the token to go on with."""

    def close(self) -> None:
        """End it after the step under way, or the hard way; safe to call twice."""
