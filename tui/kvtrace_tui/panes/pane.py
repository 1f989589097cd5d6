"""What every pane is: given a trace and a cursor it draws lines, and only when they changed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

from msgspec import Struct
from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.message import Message
from textual.strip import Strip

from kvtrace import text, units
from kvtrace.errors import KvtraceError
from kvtrace.trace import NO_ATTENTION, Trace
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line, page, shown_in
from kvtrace_tui.drawing.title import title
from kvtrace_tui.found import Found
from kvtrace_tui.panes.lined import Lined


class Moved(Message):
    """The user pointed somewhere: fields of the cursor with their new values.

    The values may be out of range; whoever holds the cursor keeps them inside the trace.
    """

    def __init__(self, changes: Mapping[str, int]) -> None:
        super().__init__()
        self.changes = changes


class _Drawn(Struct, frozen=True):
    """Lines made before they are needed, and what drawing them left for `pointed`."""

    key: Hashable
    size: tuple[int, int]
    lines: list[Strip]
    left: Mapping[str, object]


class Pane(Lined):
    """Base of all panes.

    `show` is called with every new cursor and costs nothing unless what the pane `depends` on
    changed; lines are made when they are needed, at the size the pane then has.

    Attributes:
        focused_title: Whether the pane has the arrow keys.
        found: What was found in the trace.
    """

    DEFAULT_CSS = "Pane { width: 1fr; height: 1fr; }"
    spots: ClassVar[tuple[str, ...] | None] = ()
    """What `draw` leaves for `pointed`, by name; None: it must not be drawn ahead of time."""
    grows: ClassVar[bool] = False
    """Whether it also shows steps that were added since."""
    speaks: ClassVar[bool] = False
    """Whether it shows what was found."""
    of_layers: ClassVar[bool] = False
    """Whether it shows a layer's attention, and nothing where no attention was seen at all."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.focused_title = False
        self.found: tuple[Found, ...] = ()
        self._trace: Trace | None = None
        self._cursor = Cursor()
        self._key: Hashable = None
        self._lines: list[Strip] | None = None
        self._drawn_size = (0, 0)
        self._ahead: _Drawn | None = None

    # -- what screens call -------------------------------------------------------------------

    def show(self, trace: Trace, cursor: Cursor) -> None:
        """Show another place; redraws only if something it shows is different there."""
        key = self._key_of(trace, cursor)
        self._trace, self._cursor = trace, cursor
        if key != self._key:
            self._key = key
            self._lines = None
            self.want_frame()

    def foresee(self, trace: Trace, cursor: Cursor) -> None:
        """Draw a place that is likely to be shown next, while nobody waits for it."""
        key, size = self._key_of(trace, cursor), self.size
        if self.spots is None or key == self._key or not self.display:
            return
        if self._ahead is not None and (self._ahead.key, self._ahead.size) == (key, size):
            return
        known = {name: getattr(self, name) for name in self.spots}
        lines = self._made(trace, cursor, *size)
        left = {name: getattr(self, name) for name in self.spots}
        self._leave(known)
        self._ahead = _Drawn(key, size, lines, left)

    def light(self, on: bool) -> None:
        """Say in the title whether the pane has the arrow keys."""
        if on != self.focused_title:
            self.focused_title = on
            self.redraw()

    def tell(self, found: tuple[Found, ...]) -> None:
        """Say what was found in the trace."""
        if found is not self.found:
            self.found = found
            if self.speaks:
                self.redraw()

    def redraw(self) -> None:
        """Make the lines anew when they are next needed."""
        self._lines = self._ahead = None
        self.want_frame()

    def _key_of(self, trace: Trace, cursor: Cursor) -> Hashable:
        """What the lines depend on."""
        # at the end of a run the other lanes are there, for steps that were shown before
        key: Hashable = (id(trace), self.depends(cursor), trace.ending is None)
        return (key, len(trace), len(trace.notes)) if self.grows else key

    def _leave(self, spots: Mapping[str, object]) -> None:
        for name, value in spots.items():
            setattr(self, name, value)

    # -- what panes define -------------------------------------------------------------------

    def depends(self, cursor: Cursor) -> Hashable:
        """Whatever of the cursor changes the lines."""
        raise NotImplementedError

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """The lines; `page` cuts and fills them.

        Raises:
            KvtraceError: Something it shows can't be read; the message is shown instead.
        """
        raise NotImplementedError

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """What a click at a cell changes in the cursor; nothing by default."""
        return {}

    def name_line(self, width: int) -> list[Strip]:
        """Lines that stand above an error message; the title, where there is one."""
        return []

    # -- helpers for panes -------------------------------------------------------------------

    def title_line(self, width: int, name: str, about: str = "", right: str = "") -> Strip:
        """The pane's first line."""
        return title(width, name, about, focused=self.focused_title or self.has_focus, right=right)

    # -- Textual -----------------------------------------------------------------------------

    def lines(self) -> list[Strip]:
        """Made when they are asked for, at the size there then is."""
        width, height = self.size
        if self._lines is None or self._drawn_size != (width, height):
            ahead = self._ahead
            if ahead is not None and (ahead.key, ahead.size) == (self._key, (width, height)):
                self._lines = ahead.lines
                self._leave(ahead.left)
            else:
                self._lines = self._made(self._trace, self._cursor, width, height)
            self._drawn_size = (width, height)
        return self._lines

    def _made(self, trace: Trace | None, cursor: Cursor, width: int, height: int) -> list[Strip]:
        if trace is None or width <= 0 or height <= 0:
            return shown_in(page([], width, height), self.terminal)
        if self.of_layers and not trace.meta.sites:
            strips = [*self.name_line(width), *wrapped([(NO_ATTENTION, ink.WARN)], width)]
            return shown_in(page(strips, width, height), self.terminal)
        try:
            strips = self.draw(trace, cursor, width, height)
        except KvtraceError as error:
            words: Piece = (text.safe(str(error), 2000), ink.BAD)
            strips = [*self.name_line(width), *wrapped([words], width)]
        return shown_in(page(strips, width, height), self.terminal)

    def on_click(self, event: events.Click) -> None:
        """Point with the mouse."""
        changes = self.pointed(event.x, event.y)
        if changes:
            self.post_message(Moved(changes))


@lru_cache(256)
def blank(width: int) -> Strip:
    """An empty line."""
    return Strip([Segment(" " * width, ink.TEXT)] if width else [], width)


def wrapped(pieces: list[Piece], width: int, indent: int = 1) -> list[Strip]:
    """Pieces of one long line, broken between words; later lines are indented."""
    return [line(width, *row) for row in broken(pieces, width, indent)]


def broken(pieces: Sequence[Piece], width: int, indent: int = 1) -> list[list[Piece]]:
    """The same, as pieces of lines."""
    rows: list[list[Piece]] = [[]]
    room = width
    margin: Piece = (" " * indent, ink.TEXT)
    for (word, style), whole in _with_what_follows(pieces):
        size = cell_len(word)
        together = word[0] == " " and whole <= width - indent
        if (whole if together else size) > room and rows[-1]:
            rows.append([margin])
            room, word = width - indent, word.lstrip(" ")
            size = cell_len(word)
        rows[-1].append((word, style))
        room -= size
    return rows


def _with_what_follows(pieces: Sequence[Piece]) -> list[tuple[Piece, int]]:
    """Each word with its cells and those of what follows it without a space: a comma, say."""
    found: list[tuple[Piece, int]] = []
    after = 0
    for words, style in reversed(pieces):
        for word in reversed(_words(words)):
            if not word:
                continue
            after += cell_len(word)
            found.append(((word, style), after))
            if word[0] == " ":
                after = 0
    return found[::-1]


def _words(words: str) -> list[str]:
    """Words, each with the space before it; a unit stays with its number."""
    found: list[str] = []
    for part in words.split(" "):
        if found and found[-1][-1:].isdecimal() and part.rstrip(",.:;)") in units.NAMES:
            found[-1] += f" {part}"
        else:
            found.append(f" {part}" if found else part)
    return found
