"""The numbers under the crosshair in both lanes, how far they are apart, and what that means."""

from __future__ import annotations

import numpy as np
from rich.style import Style
from textual.strip import Strip

from kvtrace.analysis.lanes.compare import Comparison, Verdict, quotient, verdict
from kvtrace.trace import LaneStep, Tensor
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, padded
from kvtrace_tui.drawing.maps.numbers import number
from kvtrace_tui.panes.compared import compared, sign_of
from kvtrace_tui.panes.named import NAME_WIDTH, long_pair, pair
from kvtrace_tui.panes.rows import RowStore
from kvtrace_tui.panes.views import LANE_INKS, LETTERS, base_rows

_VERDICT_INKS: dict[Verdict, Style] = {
    Verdict.EQUAL: ink.GOOD,
    Verdict.ROUNDING: ink.GOOD,
    Verdict.SUSPICIOUS: ink.WARN,
    Verdict.BUG: ink.BAD,
    Verdict.NOT_FINITE: ink.BAD,
    Verdict.NOT_COMPARED: ink.DIM,
}

_BESIDE = 14
"""Cells of a line of the short table that are no numbers of a lane."""

SHORT = 28
"""Columns from which there is room for the short table."""

_ALL_DIGITS = 9
"""Cells of a column from which a number has all its digits there."""


class Inspected:
    """One tensor of the cursor's head in both lanes, and the element under the crosshair."""

    def __init__(self, store: RowStore, tensor: Tensor, cursor: Cursor) -> None:
        self.value = base_rows(store, tensor, cursor)
        self.both: Comparison | None = None
        if self.value is not None:
            self.both = compared(store, tensor, cursor, self.value)
        cached = tensor in (Tensor.KEYS, Tensor.VALUES)
        self.at = (cursor.row if cached else cursor.query), cursor.dim

    def apart(self) -> tuple[float, float]:
        """Largest difference in the element, and in its row.

        NaN where not compared; infinite where a number is not finite.
        """
        nothing = float("nan")
        row, dim = self.at
        if self.both is None or row >= len(self.both.absolute):
            return nothing, nothing
        if np.isnan(self.both.other[row]).all():
            return nothing, nothing
        apart = np.nan_to_num(self.both.absolute[row], nan=np.inf, posinf=np.inf)
        return float(apart[dim]) if dim < apart.size else nothing, float(apart.max(initial=0))

    def element(self, values: Floats | None) -> float | None:
        """One element; None where the crosshair is outside."""
        row, dim = self.at
        if values is None or row >= values.shape[0] or dim >= values.shape[1]:
            return None
        return float(values[row, dim])


def number_lines(found: dict[Tensor, Inspected], cursor: Cursor, width: int) -> list[Strip]:
    """The numbers under the crosshair in both lanes, side by side."""
    wide = width >= 40
    size = 10 if wide else max((width - NAME_WIDTH - 2) // 2, 6)
    head = _lane_names(cursor, size)
    if wide:
        head.append((padded("|Δ|", size - 1, right=True), ink.DIM))
    lines = [pair(width, "", *head)]
    for tensor, read in found.items():
        value = read.element(read.value)
        if value is None:
            continue
        both = read.both
        other = None if both is None else read.element(both.other)
        apart = None if both is None else read.element(both.absolute)
        cells: list[Piece] = [
            (padded(number(value), size, right=True) + " ", ink.STRONG),
            (padded(_other(other), size, right=True) + " ", ink.TEXT),
        ]
        if wide:
            cells.append((padded(_other(apart), size - 1, right=True), ink.DIM))
        lines.append(pair(width, LETTERS[tensor], *cells))
    return lines


def _lane_names(cursor: Cursor, size: int, more: int = 0) -> list[Piece]:
    """Above two columns; a name longer than its column reaches into the room of the one before.

    Args:
        cursor: Names the lanes.
        size: Cells of a column.
        more: Cells that the first has besides.
    """
    second = max(size, len(cursor.lane))
    columns = (cursor.base, 2 * size - second + more), (cursor.lane, second)
    return [
        (padded(lane, cells, right=True) + " ", LANE_INKS.get(lane, ink.TEXT))
        for lane, cells in columns
    ]


def short_lines(
    step: LaneStep | None, found: dict[Tensor, Inspected], cursor: Cursor, width: int
) -> list[Strip]:
    """The numbers in both lanes, and how far these are apart in the head, in one table."""
    compared = _compared(found)
    size = (width - _BESIDE) // 2
    names = 4 - max(len(cursor.base) + max(size, len(cursor.lane)) - 2 * size, 0)
    head = _lane_names(cursor, size, 4 - names)
    lines = [pair(width, "", *head, (" Δ rel.", ink.DIM), names=names)]
    fewer = size < _ALL_DIGITS
    for tensor, read in found.items():
        value = read.element(read.value)
        if value is None:
            continue
        other = None if read.both is None else read.element(read.both.other)
        lines.append(
            pair(
                width,
                LETTERS[tensor],
                (padded(number(value, fewer), size, right=True) + " ", ink.STRONG),
                (padded(_other(other, fewer), size, right=True) + " ", ink.TEXT),
                _apart_in_head(compared.get(tensor)),
                names=4,
            )
        )
    return [*lines, *(_verdict_lines(compared, width) if compared else _why_not(step, width))]


def _apart_in_head(both: Comparison | None) -> Piece:
    if both is None:
        return "–", ink.DIM
    meant, share = _meant(np.inf if np.isnan(both.largest) else float(both.largest), both)
    return f"{sign_of(both.verdict)} {_share(share, 0)}", _VERDICT_INKS[meant]


def _other(value: float | None, fewer: bool = False) -> str:
    return "–" if value is None or np.isnan(value) else number(value, fewer)


def difference_lines(
    step: LaneStep | None, found: dict[Tensor, Inspected], width: int
) -> list[Strip]:
    """How far the lanes are apart, relative: in the cell, in its row, in the whole head."""
    compared = _compared(found)
    if not compared:
        return _why_not(step, width)
    digits = 1 if width >= 36 else 0
    heads = [padded(word, 6 + 2 * digits, right=True) for word in ("cell", "row", "head")]
    names = min(NAME_WIDTH, width - 22)
    lines = [pair(width, "Δ rel.", ("  ", ink.DIM), ("".join(heads), ink.DIM), names=names)]
    for tensor, both in compared.items():
        cell, row = found[tensor].apart()
        sign = sign_of(both.verdict)
        pieces: list[Piece] = [(f"{sign} ", _VERDICT_INKS[both.verdict])]
        head = np.inf if np.isnan(both.largest) else both.largest
        for apart in (cell, row, float(head)):
            meant, share = _meant(apart, both)
            said = padded(_share(share, digits), 6 + 2 * digits, right=True)
            pieces.append((said, _VERDICT_INKS[meant]))
        lines.append(pair(width, LETTERS[tensor], *pieces, names=names))
    return [*lines, *_verdict_lines(compared, width)]


def _compared(found: dict[Tensor, Inspected]) -> dict[Tensor, Comparison]:
    return {
        tensor: read.both
        for tensor, read in found.items()
        if read.both is not None and read.both.verdict is not Verdict.NOT_COMPARED
    }


def _why_not(step: LaneStep | None, width: int) -> list[Strip]:
    why = "not compared" if step is None else "rows of the other lane not kept"
    return long_pair(width, "lanes", (why, ink.DIM))


def _share(share: float, digits: int) -> str:
    if np.isnan(share):
        return "–"
    return "NaN" if np.isinf(share) else f"{share:.{digits}e}" if share else "0"


def _meant(apart: float, both: Comparison) -> tuple[Verdict, float]:
    """What a difference of this head means, and its share of the head's largest number."""
    if np.isnan(apart):
        return Verdict.NOT_COMPARED, apart
    share = quotient(apart, both.reference_max)
    return verdict(share, both.tolerance), share


def _verdict_lines(compared: dict[Tensor, Comparison], width: int) -> list[Strip]:
    """The worst of them in a word; where it is, unless it is rounding."""
    order = list(_VERDICT_INKS)
    tensor, worst = max(compared.items(), key=lambda one: order.index(one[1].verdict))
    sign = sign_of(worst.verdict)
    pieces: list[Piece] = [(f"{sign} {worst.verdict}", _VERDICT_INKS[worst.verdict])]
    if not worst.verdict.harmless:
        place = f" {LETTERS[tensor]} row {worst.row} dim {worst.dim}"
        pieces.append((place, ink.TEXT))
    return long_pair(width, "lanes", *pieces)
