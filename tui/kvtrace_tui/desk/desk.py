"""What the user is doing, without a screen: trace, cursor, breakpoints, focus, play.

Actions change the desk; the screen shows what changed. What only a screen can do (ask, copy,
open another screen) goes through `Stage`. Knows nothing of Textual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

from msgspec import Struct, field

from kvtrace.errors import UsageError
from kvtrace.trace import Tensor, Trace
from kvtrace_tui.arrangement import PANES
from kvtrace_tui.desk.breakpoints import DEFAULT, Breakpoints, Stop
from kvtrace_tui.desk.cursor import Axis, Cursor
from kvtrace_tui.found import Answer, Found


class Recording(StrEnum):
    """How a trace stands."""

    LOADING = "loading"
    RUNNING = "running"
    PAUSED = "paused"
    GROWING = "growing"
    RECORDED = "recorded"
    INCOMPLETE = "incomplete"
    FAILED = "failed"

    @property
    def live(self) -> bool:
        """Whether a recorder is there to take commands."""
        return self in (Recording.LOADING, Recording.RUNNING, Recording.PAUSED)

    @property
    def grows(self) -> bool:
        """Whether steps may still come, of a recorder here or of somebody else's."""
        return self.live or self is Recording.GROWING


class Stage(Protocol):
    """What an action asks the screen to do."""

    def ask(self, question: str, text: str, then: Callable[[str], None]) -> None:
        """Ask for a line of text; `then` gets it, unless the user goes back."""

    def copy(self, text: str) -> None:
        """Put a text on the clipboard of the user's terminal."""

    def open(self, name: str) -> None:
        """Open a screen: help, palette, log, findings, branches, memory or code; or quit."""

    def export(self) -> None:
        """Write a picture of the screen to a file, and say where."""

    def next_measure(self) -> str:
        """Show another number in the layer × head grid; its name."""

    def send(self, name: str, token: int = -1) -> None:
        """Send a command to the recorder."""


class PaneTraits(Struct, frozen=True):
    """What the arrows mean in a pane, and which tensor it shows.

    Attributes:
        title: Its name.
        across: What left and right move along.
        down: What up and down move along.
        tensor: The tensor that `y` copies from.
    """

    title: str
    across: Axis | None = None
    down: Axis | None = None
    tensor: Tensor = Tensor.KEYS

    @property
    def main(self) -> Axis | None:
        """What the page keys move along."""
        return self.across or self.down


TRAITS: Mapping[str, PaneTraits] = {
    "timeline": PaneTraits("timeline", across=Axis.STEP),
    "grid": PaneTraits("layers × heads", across=Axis.HEAD, down=Axis.LAYER),
    "keys": PaneTraits("K cache", Axis.ROW, Axis.DIM, Tensor.KEYS),
    "values": PaneTraits("V cache", Axis.ROW, Axis.DIM, Tensor.VALUES),
    "queries": PaneTraits("Q", Axis.QUERY, Axis.DIM, Tensor.QUERIES),
    "output": PaneTraits("output", Axis.QUERY, Axis.DIM, Tensor.OUTPUT),
    "attention": PaneTraits("attention", Axis.QUERY, Axis.ROW),
    "inspector": PaneTraits("inspector", Axis.ROW, Axis.DIM),
    "cost": PaneTraits("cost", across=Axis.STEP),
}


class Desk(Struct):
    """All of it, changeable.

    Attributes:
        stage: Does what only a screen can.
        trace: None until there is a first step.
        cursor: Where the user looks.
        breakpoints: Where `c` stops.
        focus: The pane that has the arrows.
        shown: The pane a compact screen shows.
        maximised: That pane alone.
        playing: Steps go on by themselves.
        following: The cursor stays on the newest step of a run that grows.
        recording: How the trace stands.
        message: What the last key led to, shown until the next one.
        waits: The message speaks of an order that is not carried out yet.
        searched: What was searched for last.
        stop: The breakpoint or finding that was gone to last.
        found: What was found in the trace, in order.
        answer: Whether the lanes are equal, as far as that is known.
    """

    stage: Stage
    trace: Trace | None = None
    cursor: Cursor = field(default_factory=Cursor)
    breakpoints: Breakpoints = DEFAULT
    focus: str = "keys"
    shown: str = "keys"
    maximised: bool = False
    playing: bool = False
    following: bool = False
    recording: Recording = Recording.RECORDED
    message: str = ""
    waits: bool = False
    searched: str = ""
    stop: Stop | None = None
    found: tuple[Found, ...] = ()
    answer: Answer = field(default_factory=Answer)

    @property
    def traits(self) -> PaneTraits:
        """Of the pane that has the arrows."""
        return TRAITS[self.focus]

    @property
    def recorded(self) -> Trace:
        """The trace.

        Raises:
            UsageError: There is none yet.
        """
        if self.trace is None:
            raise UsageError("nothing is recorded yet.")
        return self.trace

    def go(self, cursor: Cursor) -> None:
        """Look somewhere else; leaving the newest step ends following."""
        if cursor.step != self.cursor.step:
            self.following = False
        self.cursor = cursor

    def focus_on(self, pane: str) -> None:
        """Give a pane the arrows; a compact screen shows it."""
        self.focus = pane
        if pane in PANES or pane == "output":
            self.shown = pane

    def say(self, text: str) -> None:
        """Tell the user something."""
        self.message, self.waits = text, False

    def order(self, name: str, text: str) -> None:
        """Tell the recorder to do something, and the user that it will."""
        self.stage.send(name)
        self.message, self.waits = text, True

    def hear(self, recording: Recording) -> None:
        """How the trace stands now; what was ordered and is done by that is no longer said."""
        self.recording = recording
        if self.waits and recording not in (Recording.RUNNING, Recording.LOADING):
            self.say("")
