"""What stands along the edges of a map: index numbers, and where the crosshair is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rich.style import Style
from textual.strip import Strip

from kvtrace.trace import stands_for_none
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line
from kvtrace_tui.drawing.maps.filling import Filling

_APART = 8
GUTTER = 5
"""Width of the numbers at the left."""

PADDING = "pad"
NO_POSITION = "none"


def across_labels(
    axis: Filling, names: Sequence[int] | None = None, mark: int | None = None
) -> list[Piece]:
    """A line below a map: a number every few cells, and the crosshair's own.

    Args:
        axis: The cells above.
        names: A number for each index (its position, say); the index itself by default. A
            negative number is padding, or stands for no single token: it has no number.
        mark: Index under the crosshair.
    """
    row = [" "] * axis.cells
    lit: range = range(0)
    chosen = axis.cells_of(mark) if mark is not None else range(0)
    if chosen and mark is not None:
        text = f"▲{_name(mark, names)}"
        start = min(chosen.start + len(chosen) // 2, max(axis.cells - len(text), 0))
        lit = range(start, start + len(text))
        _write(row, start, text)
    step = _step(axis)
    for index in range(-(-axis.first // step) * step, axis.stop, step):
        cell = axis.cells_of(index).start
        if index == mark or (names is not None and names[index] < 0):
            continue
        text = _name(index, names)
        span = range(max(cell - 1, 0), min(cell + len(text) + 1, axis.cells))
        if cell + len(text) <= axis.cells and all(row[x] == " " for x in span):
            _write(row, cell, text)
    _draw_padding(row, axis, names)
    line = "".join(row)
    if not lit:
        return [(line, ink.FAINT)]
    return [
        (line[: lit.start], ink.FAINT),
        (line[lit.start : lit.stop], ink.ACCENT),
        (line[lit.stop :], ink.FAINT),
    ]


def _step(axis: Filling) -> int:
    """Every how manieth index has a number: a power of two that leaves room for it."""
    step = 1
    while step * axis.scale < _APART * axis.per:
        step *= 2
    return step


def _draw_padding(row: list[str], axis: Filling, names: Sequence[int] | None) -> None:
    """A dotted line under what has no position, and its name where it begins."""
    if names is None or min(names, default=0) >= 0:
        return
    begun = ""
    for cell in range(axis.cells):
        indices = axis.indices_of(cell)
        padding = bool(indices) and all(names[index] < 0 for index in indices)
        if padding and row[cell] == " ":
            row[cell] = "╌"
        name = _name(indices.start, names) if padding else ""
        room = range(cell, min(cell + len(name) + 1, axis.cells))
        if name not in ("", begun) and all(row[x] in " ╌" for x in room):
            _write(row, cell, name)
        begun = name


def _name(index: int, names: Sequence[int] | None) -> str:
    name = index if names is None else int(names[index])
    if stands_for_none(name):
        return NO_POSITION
    return PADDING if name < 0 else str(name)


def _write(row: list[str], start: int, text: str) -> None:
    for offset, letter in enumerate(text):
        if 0 <= start + offset < len(row):
            row[start + offset] = letter


@lru_cache(64)
def down_labels(down: Filling, mark: int, lines: int, per_line: int) -> tuple[Strip, ...]:
    """Numbers left of a map, [lines]: those of every fourth line, and the crosshair's.

    Args:
        down: The cells of all lines.
        mark: Index under the crosshair.
        lines: How many.
        per_line: Cells that share one.
    """
    chosen = down.cells_of(mark)
    at = chosen.start // per_line if chosen else -1
    strips = []
    for y in range(lines):
        word, style = "", ink.FAINT
        indices = down.indices_of(y * per_line)
        if y == at:
            word, style = str(mark), ink.ACCENT
        elif y % 4 == 0 and abs(y - at) > 1 and indices:
            word = str(indices.start)
        strips.append(_gutter(word, style))
    return tuple(strips)


@lru_cache(1024)
def _gutter(word: str, style: Style) -> Strip:
    return line(GUTTER, (word.rjust(GUTTER - 1)[-GUTTER + 1 :] + " ", style))
