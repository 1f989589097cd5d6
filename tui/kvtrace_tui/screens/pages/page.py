"""Screens over the main one that show many lines: help, the log, and others made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kvtrace_tui.actions import ACTIONS, GROUPS
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.depth import depth_of
from kvtrace_tui.drawing.lines import Piece, line, padded, shown_in
from kvtrace_tui.drawing.title import title
from kvtrace_tui.panes.lined import Lined
from kvtrace_tui.panes.pane import broken
from kvtrace_tui.screens.once import LeavesOnce

Row = Sequence[Piece]
Make = Callable[[int], Sequence[Row]]
"""Makes the lines for a width."""


class Lines(ScrollView, can_focus=True):
    """Lines that scroll."""

    DEFAULT_CSS = """
    Lines { height: 1fr; width: 1fr; background: #0f141b; scrollbar-size-vertical: 1;
            scrollbar-color: #465264; scrollbar-background: #0f141b; }
    """
    BINDINGS = [  # noqa: RUF012 - Textual's own form
        Binding("j", "scroll_down", show=False),
        Binding("k", "scroll_up", show=False),
    ]

    def __init__(self, rows: Make, *, from_end: bool = False, at: int = 0, pinned: int = 0) -> None:
        super().__init__()
        self._pinned = pinned
        self._make = rows
        self._from_end = from_end
        self._at = at
        self._rows: Sequence[Row] = ()

    def on_mount(self) -> None:
        """Show what there is, from the line that is meant."""
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self.reload()
        above = self._pinned + max(self.size.height - self._pinned, 0) // 2
        if self._at > above:
            self.scroll_to(y=self._at - above, animate=False)

    def on_resize(self) -> None:
        """Lines may depend on the width."""
        self.reload()

    @property
    def room(self) -> int:
        """Cells of a line: the last column is the scroll bar's, whether there is one or not yet."""
        return max(self.size.width - self.styles.scrollbar_size_vertical, 0)

    def reload(self) -> None:
        """Ask for the lines again; a log stays at its end if that is where we are."""
        at_end = self._from_end and self.scroll_offset.y >= self.max_scroll_y
        rows = self._make(self.room)
        if rows == self._rows:
            return
        self._rows = rows
        self.virtual_size = Size(self.room, len(rows))
        if at_end:
            self.scroll_end(animate=False)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the visible part."""
        at = y if y < self._pinned else y + int(self.scroll_offset.y)
        row = self._rows[at] if at < len(self._rows) else ()
        strip = line(self.room, *row)
        depth = depth_of(self.app.console.color_system, no_color=self.app.no_color)
        return shown_in([strip], depth)[0]


class PageScreen(LeavesOnce[None]):
    """A titled page of lines; esc or q goes back."""

    BINDINGS = [  # noqa: RUF012
        Binding("escape,q,question_mark", "dismiss", show=False),
    ]

    def __init__(
        self,
        name: str,
        rows: Make,
        *,
        reload_every: float | None = None,
        at: int = 0,
        pinned: int = 0,
    ) -> None:
        """Take what is shown.

        Args:
            name: Title.
            rows: Makes the lines.
            reload_every: Seconds after which a page that grows is made again; None: never.
            at: The line that is meant: it is scrolled into sight.
            pinned: How many of the first lines always stay in sight.
        """
        super().__init__()
        self._title = name
        self._lines = Lines(rows, from_end=reload_every is not None, at=at, pinned=pinned)
        self._every = reload_every

    def compose(self) -> ComposeResult:
        """The title and the lines."""
        yield TitleLine(self._title)
        yield self._lines

    def on_mount(self) -> None:
        """Keep a page that grows up to date."""
        self._lines.focus()
        if self._every is not None:
            self.set_interval(self._every, self._lines.reload)


class TitleLine(Lined):
    """The first line of a page."""

    DEFAULT_CSS = "TitleLine { height: 1; width: 1fr; overflow: hidden; }"

    def __init__(self, name: str, keys: str = "↑↓ scroll  esc back") -> None:
        super().__init__()
        self._title = name
        self._keys = keys

    def lines(self) -> list[Strip]:
        """Name, and how to leave."""
        strip = title(self.size.width, self._title, focused=True, right=self._keys)
        return shown_in([strip], self.terminal)


def help_rows(width: int) -> list[Row]:
    """All keys, by group; what is said of one is broken between words."""
    rows: list[Row] = [[(" Time is global, arrows belong to the focused pane,", ink.DIM)],
                       [(" upper case is the reverse.", ink.DIM)]]  # fmt: skip
    for group in GROUPS:
        rows += [[], [(f" {group}", ink.ACCENT)]]
        for action in ACTIONS:
            if action.group == group:
                keys, title = padded(action.shown_keys or "^p", 10), padded(action.title, 16)
                lead = [(f"  {keys}", ink.STRONG), (title, ink.TOKEN)]
                rows += broken([*lead, (action.help, ink.TEXT)], width, indent=28)
    return rows


def text_rows(lines: Sequence[str], empty: str, width: int) -> list[Row]:
    """Lines that are already safe, broken between words; a sentence when there are none."""
    said: list[Piece] = [(f" {text}", ink.TEXT) for text in lines] or [(f" {empty}", ink.DIM)]
    return [row for one in said for row in broken([one], width, indent=3)]


def page_of(name: str, log: Iterable[str], *, listens: bool) -> PageScreen:
    """The page of that name: "help" or "log".

    Args:
        name: Which.
        log: What the recorder printed, made safe; it may grow.
        listens: Whether there is, or was, a recorder to hear.
    """
    if name == "help":
        return PageScreen("keys", help_rows)
    empty = (
        "the recorder has printed nothing"
        if listens
        else "what a recorder prints is shown while it runs here; a trace does not hold it"
    )
    return PageScreen("log", lambda width: text_rows(list(log), empty, width), reload_every=0.5)
