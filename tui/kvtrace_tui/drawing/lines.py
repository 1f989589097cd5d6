"""Lines made of pieces of text, cut and filled to a width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.maps.heatstrip import joined

Piece = tuple[str, Style]


def line(width: int, *pieces: Piece, fill: Style = ink.TEXT, right: Sequence[Piece] = ()) -> Strip:
    """One line, exactly `width` cells.

    Args:
        width: Cells; where more was to be said, the last one shows `…`.
        pieces: Text with its style, already safe to show.
        fill: Style of the rest.
        right: Pieces at the right end; they give way to the left ones.
    """
    return _line(width, pieces, fill, tuple(right))


@lru_cache(2048)
def _line(width: int, pieces: tuple[Piece, ...], fill: Style, right: tuple[Piece, ...]) -> Strip:
    """A line that was shown before is the same object: nothing of it is made or written again."""
    pieces = tuple(elided(pieces, width))
    segments = [Segment(text, style) for text, style in pieces]
    room = width - sum(cell_len(text) for text, _ in pieces)
    tail = sum(cell_len(text) for text, _ in right)
    if right and tail < room:
        segments.append(Segment(" " * (room - tail), fill))
        segments += [Segment(text, style) for text, style in right]
    elif room > 0:
        segments.append(Segment(" " * room, fill))
    return Strip(segments, max(width, 0))


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Text cut or filled with spaces to `width` cells; `…` says that it was cut."""
    if width <= 0:
        return ""
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…"
    space = " " * (width - size)
    return space + text if right else text + space


def elided(pieces: Sequence[Piece], width: int) -> list[Piece]:
    """Pieces that fit; `…` where words would be cut: half a number is another number."""
    over = sum(cell_len(words) for words, _ in pieces) - width
    if over <= 0 or width <= 0:
        return list(pieces) if over <= 0 else []
    whole = "".join(words for words, _ in pieces)
    only_spaces = len(whole) - len(whole.rstrip(" ")) >= over
    room = width if only_spaces else width - 1
    found: list[Piece] = []
    for words, style in pieces:
        size = cell_len(words)
        if size > room:
            found.append((set_cell_size(words, room) + ("" if only_spaces else "…"), style))
            break
        found.append((words, style))
        room -= size
    return found


def columns(width: int, *cells: tuple[str, int, Style]) -> Strip:
    """A line of a table: (text, width, style); a negative width aligns to the right."""
    pieces = [(padded(text, abs(size), right=size < 0) + " ", style) for text, size, style in cells]
    return line(width, *pieces)


def page(strips: Iterable[Strip], width: int, height: int, fill: Style = ink.TEXT) -> list[Strip]:
    """Exactly `height` lines of exactly `width` cells."""
    blank = Strip([Segment(" " * width, fill)], width) if width > 0 else Strip([], 0)
    found = [strip if strip.cell_length == width else _fitted(strip, width, fill)
             for strip in strips][: max(height, 0)]  # fmt: skip
    return found + [blank] * (height - len(found))


def length(pieces: Sequence[Piece]) -> int:
    """Cells that they take."""
    return sum(cell_len(text) for text, _ in pieces)


def beside(parts: Sequence[tuple[Sequence[Strip], int]], fill: Style = ink.TEXT) -> list[Strip]:
    """Blocks of lines side by side: (lines, width) each; short blocks are filled."""
    height = max((len(strips) for strips, _ in parts), default=0)
    filled = [page(strips, width, height, fill) for strips, width in parts]
    return [joined(row) for row in zip(*filled, strict=True)]


def shown_in(strips: Sequence[Strip], depth: Depth) -> list[Strip]:
    """The lines as this terminal can show them: in few colours, or none, where it has no more."""
    if depth in (Depth.TRUE, Depth.XTERM):
        return list(strips)
    return [
        Strip(
            [Segment(text, ink.fitting(style, depth)) for text, style, _ in strip],
            strip.cell_length,
        )
        for strip in strips
    ]


def _fitted(strip: Strip, width: int, fill: Style) -> Strip:
    return (
        strip.crop(0, width) if strip.cell_length > width else strip.extend_cell_length(width, fill)
    )
