"""Everything about the crosshair: its numbers in both lanes, its row's origin, what they mean."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from textual.strip import Strip

from kvtrace import text
from kvtrace.analysis.attending import attends
from kvtrace.analysis.heads.statistics import Statistics, statistics
from kvtrace.analysis.selfcheck import self_check
from kvtrace.errors import KvtraceError
from kvtrace.trace import CACHED, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, beside
from kvtrace_tui.found import Found
from kvtrace_tui.panes.about import (
    absent_lines,
    kind_lines,
    layer_lines,
    memory_lines,
    origin_lines,
)
from kvtrace_tui.panes.both_lanes import (
    SHORT,
    Inspected,
    difference_lines,
    number_lines,
    short_lines,
)
from kvtrace_tui.panes.named import NAME_WIDTH, pair
from kvtrace_tui.panes.pane import Pane, wrapped
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.views import LETTERS

_ORDER = (Tensor.KEYS, Tensor.VALUES, Tensor.QUERIES, Tensor.OUTPUT)
_COLUMN = 40
_LOW = 24
"""Lines that hold everything one below the other; lower panes get two columns, where they fit."""


class InspectorPane(Pane):
    """Names at the left, numbers at the right; what matters most comes first."""

    of_layers = True
    speaks = True

    def __init__(self, shelf: Shelf, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._shelf = shelf

    def depends(self, cursor: Cursor) -> Hashable:
        """The crosshair in every tensor, and the lane."""
        return (
            cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.query, cursor.row,
            cursor.dim, cursor.base, cursor.lane,
        )  # fmt: skip

    def name_line(self, width: int) -> list[Strip]:
        """Its name."""
        return [self.title_line(width, "inspector")]

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Row, numbers, verdict, self-check, statistics, what the step did to the layer."""
        found = _found_lines(self.found, cursor, width)
        if not attends(trace, cursor.step, cursor.layer):
            title = self.title_line(width, "inspector", f"L{cursor.layer}")
            return [title, *found, *absent_lines(trace, cursor, width)]
        about = f"row {cursor.row} dim {cursor.dim}"
        title = self.title_line(width, "inspector", about)
        room = height - 1 - len(found)
        if room < _LOW and width >= 2 * _COLUMN:
            blocks = self._blocks(trace, cursor, width // 2, 2 * room)
            return [title, *found, *_in_columns(blocks, width, room)]
        blocks = self._blocks(trace, cursor, width, room)
        return [title, *found, *(one for block in blocks for one in block)]

    def _blocks(self, trace: Trace, cursor: Cursor, width: int, room: int) -> list[list[Strip]]:
        """Lines that belong together, what matters most first."""
        read = {one: Inspected(self._shelf.of(trace), one, cursor) for one in _ORDER}
        step = trace.compared(cursor.step, cursor.lane)
        first = [*kind_lines(trace, cursor, width), *origin_lines(trace, cursor, width)]
        check = self._check_lines(trace, cursor, read, width)
        layer, memory = layer_lines(trace, cursor, width), memory_lines(trace, cursor, width)
        lanes = [number_lines(read, cursor, width), difference_lines(step, read, width)]
        others = sum(map(len, (first, check, layer, memory)))
        if others + sum(map(len, lanes)) + len(_ORDER) > room and width >= SHORT:
            lanes = [short_lines(step, read, cursor, width)]
        left = room - others + len(memory) - sum(map(len, lanes))
        told = [
            strip
            for one in _ORDER[: max(left, 0)]
            for strip in self._statistics_lines(trace, cursor, one, read[one].value, width)
        ]
        return [first, *lanes, check, layer, told, memory]

    def _check_lines(
        self, trace: Trace, cursor: Cursor, read: dict[Tensor, Inspected], width: int
    ) -> list[Strip]:
        """Whether the recorded rows explain the recorded output."""
        keys, values = read[Tensor.KEYS].value, read[Tensor.VALUES].value
        rows = None
        if cursor.base == CACHED and keys is not None and values is not None:
            rows = keys[None], values[None]
        where = cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.query
        try:
            found = self._shelf.of(trace).answered(
                ("check", *where),
                0 if keys is None else len(keys),
                lambda: self_check(trace, *where, rows=rows),
            )
        except KvtraceError as error:
            return [pair(width, "check", (text.safe(str(error), 200), ink.WARN))]
        if found is None:
            return [pair(width, "check", ("output not recorded", ink.DIM))]
        sign, style = ("✓", ink.GOOD) if found.passed else ("✗", ink.BAD)
        words = f"{sign} {found.error:.1e}"
        formula = f" {text.safe(trace.site(where[1]).rule, 20)}(qkᵀ)v − out"
        room = width - NAME_WIDTH - 1 - len(words)  # half of it would be another formula
        what = next((one for one in (formula, " |Δ| of out") if len(one) <= room), " of out")
        return [pair(width, "check", (words, style), (what, ink.DIM))]

    def _statistics_lines(
        self, trace: Trace, cursor: Cursor, tensor: Tensor, values: Floats | None, width: int
    ) -> list[Strip]:
        """The ends, the mean and the spread of all numbers of the head."""
        if values is None:
            return []
        where = cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.base
        found = self._shelf.of(trace).answered(
            ("statistics", tensor, *where), len(values), lambda: statistics(values)
        )
        letter = LETTERS[tensor]
        digits = 3 if width >= 44 else 2
        spread = f"{found.mean:+.{digits}g}±{found.std:.{digits}g}"
        ends = f"{found.minimum:+.{digits}g}…{found.maximum:+.{digits}g} "
        said: list[Piece] = [*_not_finite(found), (ends, ink.TEXT)]
        if sum(len(words) for words, _ in said) + len(spread) <= width - NAME_WIDTH - 1:
            said.append((spread, ink.DIM))  # half a number would be another number
        return [pair(width, letter, *said)]


def _in_columns(blocks: Sequence[list[Strip]], width: int, height: int) -> list[Strip]:
    """Two columns of whole blocks: each at the left while there is room, else at the right."""
    left: list[Strip] = []
    right: list[Strip] = []
    for block in blocks:
        (left if len(left) + len(block) <= height else right).extend(block)
    return beside([(left, width // 2), (right, width - width // 2)])


def _found_lines(found: Sequence[Found], cursor: Cursor, width: int) -> list[Strip]:
    """What was found here, what it means, and its usual cause."""
    lines: list[Strip] = []
    for one in found:
        if one.here(cursor.step, cursor.layer):
            style = ink.BAD if one.grave else ink.WARN
            lines += wrapped(
                [(f" {one.sign} {one.name}", style), (f" {one.said}", ink.TEXT)], width
            )
            if one.cause:
                lines += wrapped([(f" {one.cause}", ink.DIM)], width)
    return lines


def _not_finite(found: Statistics) -> Iterator[Piece]:
    if found.nan:
        yield f"{found.nan} NaN ", ink.BAD
    if found.infinite:
        yield f"{found.infinite} Inf ", ink.BAD
