"""The app: opens a trace or follows a recording, and leaves the terminal in order."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np  # noqa: F401 - before Textual: its import is faster with a small heap
from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from kvtrace.errors import KvtraceError, UsageError
from kvtrace.text import safe, said_by
from kvtrace.trace import Trace
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import Axis, Cursor
from kvtrace_tui.follow import Follower, Opener
from kvtrace_tui.panes import all_panes
from kvtrace_tui.screens.main import POLL_S, MainScreen, PaneMaker
from kvtrace_tui.terminal import EXIT_CODES, hung_up, on_signals, writable
from kvtrace_tui.turns import short_turns

if TYPE_CHECKING:
    from textual.command import Provider
    from textual.driver import Driver

    from kvtrace_tui.live_run import LiveRun

_HANG_UP_S = 1.0


class At(Protocol):
    """A place to look at first."""

    @property
    def step(self) -> int:
        """Number of a step."""

    @property
    def layer(self) -> int:
        """Index into `Meta.sites`."""

    @property
    def head(self) -> int:
        """Query head."""

    @property
    def sequence(self) -> int:
        """Row of the batch."""


def _commands() -> type[Provider]:
    """Loaded when the palette is opened: the first picture comes sooner without."""
    from kvtrace_tui.screens.palette import ActionCommands

    return ActionCommands


class KvtraceApp(App[int]):
    """One trace on the screen."""

    CSS_PATH = "styles.tcss"
    TITLE = "kvtrace"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("ctrl+q", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]
    AUTO_FOCUS = None

    def __init__(
        self,
        follower: Follower,
        name: str,
        make_panes: PaneMaker,
        at: At | None = None,
    ) -> None:
        super().__init__(ansi_color=_no_color())
        # what is to be said is said in the footer: no screen needs parts for notices over it
        self._disable_notifications = self._disable_tooltips = True
        self._follower = follower
        self._what = name
        self._make_panes = make_panes
        self._at = at
        self.failure: BaseException | None = None

    def get_driver_class(self) -> type[Driver]:
        """Textual's own, which bytes from the terminal can't end where it is the usual one."""
        from textual.drivers.linux_driver import LinuxDriver

        from kvtrace_tui.driver import SteadyDriver

        usual = super().get_driver_class()
        return SteadyDriver if usual is LinuxDriver else usual

    def get_default_screen(self) -> Screen[None]:
        """The trace, where there is one: no empty screen is made and drawn before it."""
        trace = self._follower.trace
        return super().get_default_screen() if trace is None else self._main(trace)

    def on_mount(self) -> None:
        """Begin once Textual has: what is drawn before that is thrown away."""
        on_signals(self.exit)
        self.app_resume_signal.subscribe(self, lambda _: self.screen.refresh())
        if not self.is_headless:
            self.set_interval(_HANG_UP_S, self._leave_with_terminal)
        if self._follower.trace is None:
            self.call_later(self._load)

    def _leave_with_terminal(self) -> None:
        """Without a terminal nobody watches, and the recorder must not go on alone."""
        if hung_up():
            self.exit(EXIT_CODES[signal.SIGHUP])

    def _load(self) -> None:
        """Say that the trace is on its way."""
        from kvtrace_tui.screens.loading import LoadingScreen

        gc.enable()
        self.push_screen(LoadingScreen(self._follower, self._what))
        self._waiting = self.set_interval(POLL_S, self._wait)

    def _wait(self) -> None:
        """Until there is a first step, or there will be none."""
        try:
            self._follower.poll()
        except KvtraceError as error:
            self.failure = error
            self.exit(error.exit_code)
            return
        if self._follower.trace is not None:
            self._waiting.stop()
            self.switch_screen(self._main(self._follower.trace))
        elif self._follower.failure is not None or self._follower.ended:
            self.exit(0)

    def _main(self, trace: Trace) -> MainScreen:
        cursor = None if self._at is None else _cursor(trace, self._at)
        return MainScreen(self._follower, self._make_panes, cursor)

    def on_key(self, event: events.Key) -> None:
        """Keys typed faster than a question appears belong to the question."""
        take = getattr(self.screen, "typed_ahead", None)
        if take is not None and take(event):
            event.stop()
            event.prevent_default()

    def action_command_palette(self) -> None:
        """All actions by name, where there is something they act on."""
        if isinstance(self.screen, MainScreen):
            from kvtrace_tui.screens.palette import ActionPalette

            self.push_screen(ActionPalette(id="--command-palette"))

    def action_interrupt(self) -> None:
        """Ctrl-C: leave, and say so with the exit code."""
        self.exit(130)

    async def _close_all(self) -> None:
        """Take the screens away, once nothing goes on in them that would miss their parts."""
        for screen in self.screen_stack:
            be_still = getattr(screen, "be_still", None)
            if be_still is not None:
                be_still()
        await super()._close_all()

    def _handle_exception(self, error: Exception) -> None:
        """An error in the app ends it; whoever ran it gets the error."""
        self.failure = error
        super()._handle_exception(error)

    def _fatal_error(self) -> None:
        """Nothing is printed here: Textual's traceback shows locals, and text as it is in them."""
        self._close_messages_no_wait()


def run(
    trace: Path | Opener,
    live: LiveRun | None = None,
    *,
    at: At | None = None,
    mouse: bool = True,
    make_panes: PaneMaker = all_panes,
) -> int:
    """Show a trace until the user leaves.

    Args:
        trace: A file, or what opens it; with `live` it need not exist yet.
        live: The recording behind it. Closing it is up to whoever started it, and so is saying
            why it failed.
        at: Where to look first.
        mouse: Whether to take the mouse.
        make_panes: Makes the panes; all of them by default.

    Returns:
        0, or 129, 130, 143 when a signal or ctrl-c ended it.

    Raises:
        KvtraceError: The trace can't be opened.
    """
    opener = trace if callable(trace) else _opener(trace)
    name = "" if callable(trace) else safe(trace.name)
    follower = Follower(opener, live, None if live is not None else opener())
    gc.disable()
    try:
        app = _made(follower, name, make_panes, at)
        with writable(), short_turns():
            code = app.run(mouse=mouse)
    finally:
        gc.unfreeze()
        gc.enable()
    if app.failure is not None:
        raise app.failure
    return code if code is not None else (app.return_code or 0)


def _made(follower: Follower, name: str, make_panes: PaneMaker, at: At | None) -> KvtraceApp:
    """The app, which Textual makes as its variables of the environment say.

    Raises:
        UsageError: It can't, by what they say.
    """
    try:
        return KvtraceApp(follower, name, make_panes, at)
    except Exception as error:
        asked = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("TEXTUAL")]
        if not asked:
            raise
        raise UsageError(
            f"{safe(', '.join(asked), 200)}: no screen can be made so ({said_by(error, 120)}); "
            "unset it in the environment"
        ) from error


def _opener(path: Path) -> Callable[[], Trace]:
    def opened() -> Trace:
        from kvtrace.files import open_trace

        return open_trace(path)

    return opened


def _cursor(trace: Trace, at: At) -> Cursor:
    cursor = moves.start(trace, at.step)
    for axis in (Axis.SEQUENCE, Axis.LAYER, Axis.HEAD):
        cursor = moves.at(cursor, trace, axis, getattr(at, axis.value))
    return cursor


def _no_color() -> bool:
    return "NO_COLOR" in os.environ
