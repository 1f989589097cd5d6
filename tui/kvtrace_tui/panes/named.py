"""A name at the left, what is said of it at the right: the lines of the inspector."""

from __future__ import annotations

from textual.strip import Strip

from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line, padded
from kvtrace_tui.panes.pane import wrapped

NAME_WIDTH = 8


def pair(width: int, name: str, *pieces: Piece, names: int = NAME_WIDTH) -> Strip:
    """One line."""
    return line(width, (" ", ink.DIM), (padded(name, names), ink.DIM), *pieces)


def long_pair(width: int, name: str, *pieces: Piece) -> list[Strip]:
    """As `pair`, on as many lines as it takes."""
    lead: Piece = (f" {padded(name, NAME_WIDTH)}", ink.DIM)
    return wrapped([lead, *pieces], width, indent=NAME_WIDTH + 1)
