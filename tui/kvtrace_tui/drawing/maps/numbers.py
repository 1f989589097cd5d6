"""The numbers themselves: a window of a table, aligned, with the cell under the crosshair lit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from textual.strip import Strip

from kvtrace.trace.dtypes import Floats
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line, padded
from kvtrace_tui.drawing.maps.filling import window

_CELL = 9


def number(value: float, fewer: bool = False) -> str:
    """One value in at most 8 cells, with its sign: `+1.23456`, `-4.2e-07`, `NaN`.

    With fewer digits in at most 7: `+1.2346`, `-4e-07`.
    """
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    size = abs(value)
    if size and (size < 1e-3 or size >= 99999):
        return f"{value:+.{0 if fewer else 1}e}"
    digits = 5 if size < 9.9999 else 3 if size < 999.9 else 1  # rounding adds no digit in front
    return f"{value:+.{digits - fewer}f}"


def exactly(value: float, absent: bool) -> str:
    """All digits that a float32 has; what was not recorded says so."""
    if np.isnan(value):
        return "not compared" if absent else "NaN"
    if np.isinf(value):
        return number(value)
    return f"{value:+.9g}"


def number_table(
    values: Floats,
    row_labels: Sequence[str],
    mark: tuple[int, int],
    size: tuple[int, int],
) -> list[Strip]:
    """A window around the crosshair: a line of feature numbers, then a line for each row.

    Args:
        values: [rows, features].
        row_labels: A label for each row, safe to show.
        mark: (row, feature) under the crosshair.
        size: (width, height).
    """
    width, height = size
    gutter = min(max((len(label) for label in row_labels), default=0), 18) + 1
    rows = window(values.shape[0], height - 1, mark[0])
    features = window(values.shape[1], (width - gutter) // (_CELL + 1), mark[1])
    head: list[Piece] = [(" " * gutter, ink.DIM)]
    head += [
        (padded(str(f), _CELL + 1, right=True), ink.STRONG if f == mark[1] else ink.DIM)
        for f in features
    ]
    lines = [line(width, *head)]
    for row in rows:
        here = row == mark[0]
        pieces: list[Piece] = [
            (padded(row_labels[row], gutter), ink.STRONG if here else ink.DIM),
        ]
        for feature in features:
            shown = padded(number(float(values[row, feature])), _CELL, right=True)
            lit = here and feature == mark[1]
            pieces += [(" ", ink.TEXT), (shown, ink.CHOSEN if lit else ink.TEXT)]
        lines.append(line(width, *pieces))
    return lines
