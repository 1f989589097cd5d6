"""Bars, sparklines and columns in eighths of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

_ACROSS = " ▏▎▍▌▋▊▉█"
_UP = " ▁▂▃▄▅▆▇█"


def bar(part: float, width: int) -> str:
    """A horizontal bar, `width` cells with its spaces.

    Args:
        part: 0 … 1; anything above zero shows at least an eighth.
        width: Cells of a whole bar.
    """
    if width <= 0 or not part > 0:
        return " " * max(width, 0)
    eighths = min(max(round(part * width * 8), 1), width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_ACROSS[rest] if rest else "")).ljust(width)


def spark(values: Sequence[float], high: float) -> str:
    """One glyph a value, `▁` … `█`; a space where there is none."""
    if not high > 0:
        return _UP[1] * len(values)
    found = [min(max(round(value / high * 8), 1), 8) if value >= 0 else 0 for value in values]
    return "".join(_UP[eighths] for eighths in found)


def strongest(values: NDArray[np.floating], cells: int) -> NDArray[np.floating]:
    """The largest value for each of at most `cells` bins of equal size."""
    count = len(values)
    if count == 0 or cells <= 0:
        return np.zeros(0)
    size = -(-count // cells)
    return np.asarray(np.maximum.reduceat(values, np.arange(0, count, size)))


def layered(
    back: Sequence[float], front: Sequence[float], height: int, inks: Sequence[tuple[Style, Style]]
) -> list[Strip]:
    """Columns of two quantities, the smaller one in front of the larger.

    Args:
        back: Parts of the height, 0 … 1, one for each cell of the width.
        front: The same for the smaller quantity.
        height: Lines.
        inks: For each column: the styles of back and front.
    """
    columns = [
        (_eighths(b, height), _eighths(f, height), styles)
        for b, f, styles in zip(back, front, inks, strict=True)
    ]
    runs = [(*column, len(list(same))) for column, same in groupby(columns)]
    lines = []
    for floor in range(8 * (height - 1), -1, -8):
        segments = [
            _filled(min(max(b - floor, 0), 12), min(max(f - floor, 0), 8), styles, count)
            for b, f, styles, count in runs
        ]
        lines.append(_merged(segments, len(columns)))
    return lines


def _eighths(part: float, height: int) -> int:
    return 0 if not part > 0 else min(max(round(part * height * 8), 1), height * 8)


@lru_cache(1024)
def _filled(back: int, front: int, styles: tuple[Style, Style], count: int) -> Segment:
    """Cells with that much of both quantities, in eighths from their bottom; the rest is above."""
    behind, before = styles
    if front >= 8:
        return Segment("█" * count, before)
    if front > 0:
        # the rest of this cell is filled by the back column: never less than it shows
        full = back >= 8 or back - front >= 4
        style = Style(color=before.color, bgcolor=behind.color) if full else before
        return Segment(_UP[front] * count, style)
    return Segment(_UP[min(back, 8)] * count, behind)


def _merged(segments: Sequence[Segment], width: int) -> Strip:
    """One segment for each run of the same style: told by identity, which costs nothing."""
    runs: list[Segment] = []
    start = 0
    for end in range(1, len(segments) + 1):
        if end == len(segments) or segments[end].style is not segments[start].style:
            text = "".join([segment.text for segment in segments[start:end]])
            runs.append(Segment(text, segments[start].style))
            start = end
    return Strip(runs, width)
