"""A page of paragraphs, one of them chosen: the list of findings, the tree of branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding

from kvtrace_tui.drawing.lines import Piece
from kvtrace_tui.screens.once import LeavesOnce
from kvtrace_tui.screens.pages.page import Lines, Row, TitleLine

Rows = Sequence[tuple[Sequence[Piece], int]]
"""Lines, each with the number of the choice it belongs to; -1: none."""

Make = Callable[[int, int], Rows]
"""Makes the lines for a width and the number of the chosen one."""

_EVERY_S = 0.3


class ChoiceList(Lines):
    """Lines that scroll, in which one choice stands out."""

    def __init__(self, make: Make, chosen: int) -> None:
        super().__init__(self._choices)
        self._make_choices = make
        self._owners: list[int] = []
        self.chosen = chosen

    @property
    def count(self) -> int:
        """How many there are to choose from."""
        return max(self._owners, default=-1) + 1

    def _choices(self, width: int) -> Sequence[Row]:
        rows = self._make_choices(width, self.chosen)
        self._owners = [owner for _, owner in rows]
        return [row for row, _ in rows]

    def on_mount(self) -> None:
        """Show what there is, and what comes meanwhile."""
        self.set_interval(_EVERY_S, self.reload)
        self.call_after_refresh(lambda: self.choose(self.chosen))

    def choose(self, index: int) -> None:
        """Choose one and keep it in sight."""
        self.chosen = min(max(index, 0), max(self.count - 1, 0))
        self.reload()
        mine = [y for y, owner in enumerate(self._owners) if owner == self.chosen]
        if not mine:
            return
        top, shown = int(self.scroll_offset.y), self.size.height
        if self.chosen == 0:
            self.scroll_to(y=0, animate=False)
        elif mine[0] < top or mine[-1] >= top + shown:
            above = mine[0] < top or len(mine) > shown
            self.scroll_to(y=mine[0] if above else mine[-1] + 1 - shown, animate=False)

    def on_click(self, event: events.Click) -> None:
        """A click chooses; on the chosen one it goes there."""
        at = event.y + int(self.scroll_offset.y)
        index = self._owners[at] if at < len(self._owners) else -1
        if index >= 0 and index == self.chosen and isinstance(self.screen, ChoiceScreen):
            self.screen.action_go()
        elif index >= 0:
            self.choose(index)


class ChoiceScreen(LeavesOnce[int | None]):
    """The page; enter goes to the chosen one, esc goes back."""

    BINDINGS = [  # noqa: RUF012 - Textual's own form
        Binding("escape,q", "leave", show=False),
        Binding("enter", "go", show=False, priority=True),
        Binding("down,j,c,n", "move(1)", show=False, priority=True),
        Binding("up,k,C,N", "move(-1)", show=False, priority=True),
        Binding("pagedown", "move(10)", show=False, priority=True),
        Binding("pageup", "move(-10)", show=False, priority=True),
    ]

    def __init__(self, name: str, make: Make, chosen: int = 0) -> None:
        super().__init__()
        self._title = name
        self._list = ChoiceList(make, chosen)

    def compose(self) -> ComposeResult:
        """The title and the list."""
        yield TitleLine(self._title, "↑↓ choose  enter go there  esc back")
        yield self._list

    def on_mount(self) -> None:
        """The list has the keys."""
        self._list.focus()

    def action_move(self, by: int) -> None:
        """Some choices on or back."""
        self._list.choose(self._list.chosen + by)

    def action_go(self) -> None:
        """Leave, and go to the chosen one."""
        self.dismiss(self._list.chosen if self._list.count else None)

    def action_leave(self) -> None:
        """Leave."""
        self.dismiss(None)
