"""Parts that only a small terminal shows: tabs, and what is said where there is no room at all."""

from __future__ import annotations

import textwrap

from textual import events
from textual.message import Message
from textual.strip import Strip

from kvtrace_tui.arrangement import LEAST, PANES
from kvtrace_tui.desk.desk import TRAITS
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line
from kvtrace_tui.screens.bars import Drawn


class Touched(Message):
    """A part changed the desk."""


class TabBar(Drawn):
    """The panes a compact screen can show."""

    fill = ink.TITLE

    def draw(self, width: int, height: int) -> list[Strip]:
        """Number and name of each; where they do not fit, the name of the shown one."""
        short = {"grid": "grid", "attention": "attn", "inspector": "inspect"}
        names = {name: short.get(name, TRAITS[name].title.split(" ")[0]) for name in PANES}
        named = sum(len(words) + 5 for words in names.values()) <= width + 1
        pieces: list[Piece] = []
        for index, (name, words) in enumerate(names.items()):
            chosen = name == self.desk.shown
            label = f"{index + 1} {words}" if named or chosen else str(index + 1)
            style = ink.CHOSEN if chosen else ink.TITLE
            pieces += [(f" {label} ", style), (" ", ink.TITLE)]
        return [line(width, *pieces, fill=ink.TITLE)]

    def on_click(self, event: events.Click) -> None:
        """Show the pane under the mouse."""
        at = 0
        for name, piece in zip(PANES, list(self._lines[0])[::2], strict=False):
            at += len(piece.text) + 1
            if event.x < at:
                self.desk.focus_on(name)
                self.post_message(Touched())
                return


class SmallBar(Drawn):
    """Shown instead of everything when the terminal is too small."""

    def draw(self, width: int, height: int) -> list[Strip]:
        """What is needed and what there is."""
        text = f"kvtrace needs {LEAST[0]}×{LEAST[1]}, this terminal has {width}×{height}. q quits."
        return [line(width, (part, ink.TEXT)) for part in textwrap.wrap(text, max(width, 1))]
