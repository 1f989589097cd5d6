"""The first line of a pane: its name, what it shows, and whether it has the keys."""

from __future__ import annotations

from textual.strip import Strip

from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line


def title(
    width: int, name: str, about: str = "", *, focused: bool = False, right: str = ""
) -> Strip:
    """One line across the pane.

    Args:
        width: Cells.
        name: What the pane is.
        about: What it shows at the moment; recedes.
        focused: It gets the arrow keys.
        right: At the right end, where there is room.
    """
    lead = ink.TITLE_FOCUSED if focused else ink.TITLE
    pieces: list[Piece] = [(f" {name} ", lead)]
    if about:
        pieces.append((f" {about}", ink.BAR if focused else ink.TITLE_DIM))
    end: list[Piece] = [(f"{right} ", ink.TITLE_DIM)] if right else []
    return line(width, *pieces, fill=ink.TITLE_DIM, right=end)
