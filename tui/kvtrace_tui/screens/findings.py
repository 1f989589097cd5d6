"""The list of what was found: the answer first, then each finding with its meaning and cause."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.depth import depth_of
from kvtrace_tui.drawing.lines import Piece, line, shown_in
from kvtrace_tui.found import Answer, Found
from kvtrace_tui.screens.pages import TitleLine

Row = Sequence[Piece]
_EVERY_S = 0.3
_INKS = {"✗": ink.BAD, "!": ink.WARN, "·": ink.TOKEN}


def answer_rows(answer: Answer, found: Sequence[Found], width: int) -> list[Row]:
    """The verdict with its reasons."""
    style = ink.GOOD if answer.equal else ink.BAD if answer.diverged else ink.WARN
    sign = "✓ " if answer.equal else "✗ " if answer.diverged else ""
    verdict = answer.verdict or "only the cached lane was recorded: there is nothing to hold it to"
    count = f" · {len(found)} found" if found else ""
    rows: list[Row] = [[], [(f" {sign}{verdict}", style), (count, ink.DIM)]]
    for text in answer.lines:
        rows += [[(f"   {part}", ink.TEXT)] for part in textwrap.wrap(text, max(width - 6, 20))]
    if not found and answer.verdict != "checking":
        rows += [[], [(" Nothing was found, and nobody wrote anything into this trace.", ink.DIM)]]
    return rows


def found_rows(one: Found, width: int, chosen: bool) -> Iterator[Row]:
    """One finding as a paragraph."""
    lead = ink.CHOSEN if chosen else _INKS[one.sign]
    yield [(f" {one.sign} {one.name} ", lead), (f" {one.place}", ink.STRONG if chosen else ink.DIM)]
    parts = (
        ("", one.said, ink.TEXT),
        ("it is", one.means, ink.TEXT),
        ("usual cause" if one.grave else "why", one.cause, ink.TEXT),
        ("look at", one.code, ink.TOKEN),
    )
    for label, text, style in parts:
        for number, part in enumerate(textwrap.wrap(text, max(width - 20, 20))):
            yield [(f"   {'' if number else label:<12} ", ink.DIM), (part, style)]
    yield []


class FindingList(ScrollView, can_focus=True):
    """Findings, one of them chosen."""

    def __init__(self, look: Callable[[], tuple[Answer, Sequence[Found]]]) -> None:
        super().__init__()
        self._look = look
        self._rows: list[Row] = []
        self._owners: list[int] = []
        self.chosen = 0
        self.found: Sequence[Found] = ()

    def on_mount(self) -> None:
        """Show what there is, and what is found meanwhile."""
        self.set_interval(_EVERY_S, self.reload)

    def on_resize(self) -> None:
        """Wrap anew."""
        self.reload()

    def reload(self) -> None:
        """Ask again; redraw if something is new."""
        answer, found = self._look()
        self.found = found
        width = self.size.width
        rows = answer_rows(answer, found, width)
        owners = [-1] * len(rows)
        rows.append([])
        owners.append(-1)
        for index, one in enumerate(found):
            mine = list(found_rows(one, width, index == self.chosen))
            rows += mine
            owners += [index] * len(mine)
        if rows != self._rows:
            self._rows, self._owners = rows, owners
            self.virtual_size = Size(width, len(rows))
            self.refresh()

    def choose(self, index: int) -> None:
        """Choose a finding and keep it in sight."""
        self.chosen = min(max(index, 0), max(len(self.found) - 1, 0))
        self.reload()
        if self.chosen in self._owners:
            top = self._owners.index(self.chosen)
            end = top + self._owners.count(self.chosen)
            first = 0 if self.chosen == 0 else max(end - self.size.height, 0)
            if not self.scroll_offset.y <= top or end > self.scroll_offset.y + self.size.height:
                self.scroll_to(y=min(top, max(first, 0)) if self.chosen else 0, animate=False)

    def render_line(self, y: int) -> Strip:
        """One line of the visible part."""
        at = y + self.scroll_offset.y
        row = self._rows[at] if at < len(self._rows) else ()
        depth = depth_of(self.app.console.color_system, no_color=self.app.no_color)
        return shown_in([line(self.size.width, *row)], depth)[0]

    def on_click(self, event: events.Click) -> None:
        """A click chooses; on the chosen one it goes there."""
        at = event.y + self.scroll_offset.y
        index = self._owners[at] if at < len(self._owners) else -1
        if index < 0:
            return
        if index == self.chosen and isinstance(self.screen, FindingsScreen):
            self.screen.action_go()
        else:
            self.choose(index)


class FindingsScreen(ModalScreen[Found | None]):
    """The list; enter goes to the chosen one."""

    BINDINGS = [  # noqa: RUF012 - Textual's own form
        Binding("escape,q,f", "leave", show=False),
        Binding("enter", "go", show=False, priority=True),
        Binding("down,j,c,n", "move(1)", show=False, priority=True),
        Binding("up,k,C,N", "move(-1)", show=False, priority=True),
    ]

    def __init__(self, look: Callable[[], tuple[Answer, Sequence[Found]]]) -> None:
        super().__init__()
        self._list = FindingList(look)

    def compose(self) -> ComposeResult:
        """The title and the list."""
        yield TitleLine("findings", "↑↓ choose  enter go there  esc back")
        yield self._list

    def on_mount(self) -> None:
        """The list has the keys."""
        self._list.focus()

    def action_move(self, by: int) -> None:
        """The next or the previous finding."""
        self._list.choose(self._list.chosen + by)

    def action_go(self) -> None:
        """Leave, and go to the chosen one."""
        found = self._list.found
        self.dismiss(found[self._list.chosen] if found else None)

    def action_leave(self) -> None:
        """Leave."""
        self.dismiss(None)
