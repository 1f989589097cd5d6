"""The main screen: panes around one desk, and the keys that change it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from msgspec.structs import replace
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.layout import Layout
from textual.timer import Timer

from kvtrace.errors import KvtraceError
from kvtrace.trace import Trace
from kvtrace_tui.actions import ACTIONS, BY_ID
from kvtrace_tui.arrangement import Boxes
from kvtrace_tui.desk import breakpoints, moves
from kvtrace_tui.desk.cursor import Axis, Cursor
from kvtrace_tui.desk.desk import TRAITS, Desk, Recording
from kvtrace_tui.follow import Follower
from kvtrace_tui.panes.lined import Lined
from kvtrace_tui.panes.pane import Moved, Pane
from kvtrace_tui.panes.timeline import TimelinePane
from kvtrace_tui.screens.ahead import Ahead
from kvtrace_tui.screens.bars import Drawn, FooterBar, StatusBar
from kvtrace_tui.screens.direct import DirectScreen
from kvtrace_tui.screens.placed import Placed, Places
from kvtrace_tui.screens.stage import ScreenStage

if TYPE_CHECKING:
    from kvtrace_tui.screens.checking import Checking
    from kvtrace_tui.screens.small import Touched

PLAY_S = 0.15
POLL_S = 0.1
WATCH_S = 1.0
"""Between two looks at a file that nobody writes, as far as we know."""

PaneMaker = Callable[[], Iterator[Sequence[Pane]]]
"""Makes the panes of the first picture, then the others."""


class MainScreen(DirectScreen, inherit_bindings=False):
    """Everything about one trace."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(",".join(action.keys), f"act('{action.id}')", action.title, show=False)
        for action in ACTIONS
        if action.keys
    ]

    def __init__(self, follower: Follower, make_panes: PaneMaker, at: Cursor | None = None) -> None:
        super().__init__()
        self.desk = Desk(ScreenStage(self, follower), recording=follower.recording)
        self._follower = follower
        self._panes: dict[str, Pane] = {}
        self._bars: list[Drawn] = []
        self._making = self._made(make_panes)
        self._player: Timer | None = None
        self._placed_boxes: Boxes = {}
        self._wanted: set[Lined] | None = None
        self._arranged = Places(self.desk)
        self._placed = Placed(self._arranged.boxes)
        self._ahead = Ahead(lambda seconds, call: self.set_timer(seconds, call))
        if follower.trace is not None:
            self.desk.trace = follower.trace
            self.desk.cursor = moves.start(follower.trace) if at is None else at
            if follower.recording.live and at is None:
                self._go_to_newest(follower.trace)

    @cached_property
    def _checking(self) -> Checking:
        """Loaded when it begins, which is after the first picture."""
        from kvtrace_tui.screens.checking import Checking

        return Checking(self.desk, self.sync, self._soon)

    # -- putting it together -----------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """The parts of the first picture; which of them show is up to the arrangement."""
        return self._more_parts()

    def _made(self, make_panes: PaneMaker) -> Iterator[Sequence[Pane | Drawn]]:
        panes = make_panes()
        yield [StatusBar(self.desk, "status"), FooterBar(self.desk, "footer"), *next(panes, ())]
        from kvtrace_tui.screens.small import SmallBar, TabBar

        yield [TabBar(self.desk, "tabs"), SmallBar(self.desk, "small"), *chain(*panes)]

    def _more_parts(self) -> Sequence[Pane | Drawn]:
        """The next ones that are made; none: all are there."""
        parts = next(self._making, ())
        for part in parts:
            part.changed = self._want
            if isinstance(part, Drawn):
                self._bars.append(part)
            else:
                self._panes[part.id or ""] = part
        return parts

    def on_mount(self) -> None:
        """Follow the trace, and look for findings."""
        self.set_interval(POLL_S if self._follower.may_change else WATCH_S, self._poll)
        self.sync()
        self.call_after_refresh(self._after_first_picture)

    async def _after_first_picture(self) -> None:
        """What was left out of it, so that there is something to see sooner; once."""
        parts = self._more_parts() if self.is_attached else ()  # who leaves at once sees no more
        if not parts:
            return
        with self.app.batch_update():  # in one frame
            await self.mount(*parts)
            self._placed_boxes = {}
            self.sync()
        # what is loaded stays: a collection looks only at what came since
        gc.freeze()
        gc.enable()
        self._checking.begin()
        self._expect_more(None)

    async def on_screen_suspend(self) -> None:
        """A page opened before the first picture holds nothing up."""
        await self._after_first_picture()

    @property
    def layout(self) -> Layout:
        """Parts stand where the arrangement says."""
        return self._placed

    def pane(self, name: str) -> Pane | None:
        """The pane of that name."""
        return self._panes.get(name)

    def sync(self) -> None:
        """Show what the desk says, as far as it changed, in one frame."""
        wanted: set[Lined] = set()
        self._wanted = wanted
        try:
            self._tell_parts()
        finally:
            self._wanted = None
        self.draw_now(wanted)

    def _want(self, part: Lined) -> None:
        """A part has other lines; within `sync` they are drawn together with the others'."""
        if self._wanted is None:
            self.draw_now((part,))
        else:
            self._wanted.add(part)

    def _tell_parts(self) -> None:
        boxes = self._arranged.boxes(*self.size)
        self._focus_what_is_shown()
        if self._placed_boxes is not boxes:
            self._placed_boxes = boxes
            for child in self.children:
                child.display = (child.id or "") in boxes
            self._clear_arrangement_cache()
            self.refresh(layout=True)
        if self.desk.trace is not None:
            self._mark(self.desk.trace)
            for name, pane in self._panes.items():
                if name in boxes:
                    pane.light(name == self.desk.focus)
                    pane.tell(self.desk.found)
                    pane.show(self.desk.trace, self.desk.cursor)
        for part in self._bars:
            if part.id in boxes:
                part.update()
        self._set_player()

    def _focus_what_is_shown(self) -> None:
        """The arrows never belong to a pane that can't be seen."""
        desk = self.desk
        boxes = self._arranged.boxes(*self.size)
        if desk.focus not in boxes:
            visible = [name for name in TRAITS if name in boxes]
            desk.focus = desk.shown if desk.shown in boxes else next(iter(visible), desk.focus)

    def _mark(self, trace: Trace) -> None:
        """Breakpoints and findings on the timeline."""
        timeline = self._panes.get("timeline")
        if isinstance(timeline, TimelinePane):
            stops = breakpoints.stops(trace, self.desk.breakpoints)
            found = [one.step for one in self.desk.found if one.step is not None and one.stops]
            timeline.mark([stop.step for stop in stops], found)

    # -- keys and the mouse ------------------------------------------------------------------

    def action_act(self, name: str) -> None:
        """Do something from the table, or say why not."""
        action, desk = BY_ID[name], self.desk
        before = desk.cursor
        reason = action.why_not(desk)
        if reason is not None:
            desk.say(reason)
        else:
            desk.message = ""
            self.careful(lambda: action.do(desk))
        self.sync()
        self._expect_more(before)

    def _expect_more(self, before: Cursor | None) -> None:
        """The same move once more is the likeliest next key, where no step may still change."""
        trace, boxes = self.desk.trace, self._arranged.boxes(*self.size)
        panes = [pane for name, pane in self._panes.items() if name in boxes]
        if trace is not None and panes and not self._follower.may_change:
            self._ahead.expect(before, self.desk.cursor, trace, panes)

    def careful(self, deed: Callable[[], None]) -> None:
        """Whatever is wrong with the trace is said, and nothing else happens."""
        try:
            deed()
        except KvtraceError as error:
            self.desk.say(str(error))

    def on_moved(self, message: Moved) -> None:
        """Somebody pointed somewhere in a pane."""
        message.stop()
        trace = self.desk.trace
        if trace is None:
            return
        cursor = self.desk.cursor
        known = Cursor.__struct_fields__
        axes = {axis.value for axis in Axis}
        for name, value in message.changes.items():
            if name in axes:
                cursor = moves.at(cursor, trace, Axis(name), value)
            elif name in known:
                cursor = replace(cursor, **{name: value})
        self.desk.go(cursor)
        self.sync()

    def on_touched(self, message: Touched) -> None:
        """A part changed the desk."""
        message.stop()
        self.sync()

    def on_click(self, event: events.Click) -> None:
        """A click gives its pane the arrows, if there is anything for them to move in it."""
        widget, _ = self.get_widget_at(event.screen_x, event.screen_y)
        name = widget.id if isinstance(widget, Pane) else None
        if name is not None and name in TRAITS:
            self.desk.focus_on(name)
            self.sync()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel goes on in time."""
        event.stop()
        self.action_act("next_step")

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel goes back in time."""
        event.stop()
        self.action_act("previous_step")

    def on_resize(self) -> None:
        """Another size may be another arrangement."""
        self.sync()

    # -- time goes on ------------------------------------------------------------------------

    def _set_player(self) -> None:
        if self.desk.playing and self._player is None:
            self._player = self.set_interval(PLAY_S, self._play)
        elif not self.desk.playing and self._player is not None:
            self._player.stop()
            self._player = None

    def _play(self) -> None:
        desk = self.desk
        if desk.trace is None:
            return
        before = desk.cursor
        cursor = moves.by_steps(before, desk.trace, 1)
        if cursor.step == desk.cursor.step and not self._follower.may_change:
            desk.playing = False
        desk.go(cursor)
        self.sync()
        self._expect_more(before)

    def _poll(self) -> None:
        """What the recorder and the file have that is new."""
        desk = self.desk
        before, fate = desk.recording, self._follower.fate
        try:
            if not self._follower.poll():
                return
        except KvtraceError as error:
            desk.say(str(error))
        if self._follower.fate != fate:
            desk.say(self._follower.fate)
        desk.hear(self._follower.recording)
        desk.trace = trace = self._follower.trace
        if trace is not None and desk.following:
            self._go_to_newest(trace)
        if desk.recording is Recording.FAILED and before is not desk.recording:
            failure = self._follower.failure
            desk.say("" if failure is None else failure.text)
        grew = before.live or before is Recording.GROWING
        if grew and not (desk.recording.live or desk.recording is Recording.GROWING):
            self._checking.begin()
        elif trace is not None and not desk.recording.live:
            self._checking.note(trace)
        self.sync()

    def _go_to_newest(self, trace: Trace) -> None:
        desk = self.desk
        desk.following = True
        if trace.numbers:
            desk.cursor = moves.to_newest(desk.cursor, trace)

    def _soon(self, deed: Callable[[], None]) -> None:
        """What a thread tells, unless the screen is gone."""
        if self.is_running:
            self.call_later(deed)
