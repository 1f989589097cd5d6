"""What stands along the edges of a map: index numbers, and where the crosshair is."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.binning import Binning
from kvtrace_tui.drawing.lines import Piece

_APART = 8


def across_labels(
    axis: Binning, names: Sequence[int] | None = None, mark: int | None = None
) -> list[Piece]:
    """A line below a map: a number every few cells, and the crosshair's own.

    Args:
        axis: The bins above.
        names: A number for each index (its position, say); the index itself by default.
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
    step = max(-(-_APART // axis.stretch), 1)
    for bin_ in range(0, axis.bins, step):
        cell = bin_ * axis.stretch
        text = str(_name(axis.indices_of(cell).start, names))
        span = range(max(cell - 1, 0), min(cell + len(text) + 1, axis.cells))
        if cell + len(text) <= axis.cells and all(row[x] == " " for x in span):
            _write(row, cell, text)
    line = "".join(row)
    if not lit:
        return [(line, ink.FAINT)]
    return [
        (line[: lit.start], ink.FAINT),
        (line[lit.start : lit.stop], ink.ACCENT),
        (line[lit.stop :], ink.FAINT),
    ]


def _name(index: int, names: Sequence[int] | None) -> int:
    return index if names is None else int(names[index])


def _write(row: list[str], start: int, text: str) -> None:
    for offset, letter in enumerate(text):
        if 0 <= start + offset < len(row):
            row[start + offset] = letter
