"""Everything about the crosshair: its numbers in both lanes, its row's origin, what they mean."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from rich.style import Style
from textual.strip import Strip

from kvtrace import text, units
from kvtrace.analysis.changes import change
from kvtrace.analysis.compare import Comparison, Verdict, quotient, verdict
from kvtrace.analysis.nature import attention_is, readers
from kvtrace.analysis.origin import NO_SINGLE, Origin, origin
from kvtrace.analysis.packed import pool_text
from kvtrace.analysis.selfcheck import self_check
from kvtrace.analysis.statistics import Statistics, statistics
from kvtrace.errors import KvtraceError
from kvtrace.trace import CACHED, LaneStep, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, beside, line, padded
from kvtrace_tui.drawing.numbers import number
from kvtrace_tui.found import Found
from kvtrace_tui.panes.pane import Pane, wrapped
from kvtrace_tui.panes.rows import RowStore, Shelf
from kvtrace_tui.panes.views import LANE_INKS, LETTERS, base_rows, compared, sign_of

_ORDER = (Tensor.KEYS, Tensor.VALUES, Tensor.QUERIES, Tensor.OUTPUT)
_VERDICT_INKS: dict[Verdict, Style] = {
    Verdict.EQUAL: ink.GOOD,
    Verdict.ROUNDING: ink.GOOD,
    Verdict.SUSPICIOUS: ink.WARN,
    Verdict.BUG: ink.BAD,
    Verdict.NOT_FINITE: ink.BAD,
    Verdict.NOT_COMPARED: ink.DIM,
}
_NAME = 8
_COLUMN = 40
_LOW = 24
"""Lines that hold everything one below the other; lower panes get two columns, where they fit."""


class InspectorPane(Pane):
    """Names at the left, numbers at the right; what matters most comes first."""

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
        about = f"row {cursor.row} dim {cursor.dim}"
        title = self.title_line(width, "inspector", about)
        found = _found_lines(self.found, cursor, width)
        room = height - 1 - len(found)
        if room < _LOW and width >= 2 * _COLUMN:
            blocks = self._blocks(trace, cursor, width // 2, 2 * room)
            return [title, *found, *_in_columns(blocks, width, room)]
        blocks = self._blocks(trace, cursor, width, room)
        return [title, *found, *(one for block in blocks for one in block)]

    def _blocks(self, trace: Trace, cursor: Cursor, width: int, room: int) -> list[list[Strip]]:
        """Lines that belong together, what matters most first."""
        read = {one: _Read(self._shelf.of(trace), one, cursor) for one in _ORDER}
        step = trace.compared(cursor.step, cursor.lane)
        blocks = [
            [*_kind_lines(trace, cursor, width), *_origin_lines(trace, cursor, width)],
            _number_lines(read, cursor, width),
            _difference_lines(step, read, width),
            self._check_lines(trace, cursor, read, width),
        ]
        left = room - sum(map(len, blocks))
        if left > 0:
            blocks.append(_layer_lines(trace, cursor, width))
            left -= len(blocks[-1])
        told = _ORDER[: max(left, 0)]
        blocks.append(
            [
                strip
                for one in told
                for strip in self._statistics_lines(trace, cursor, one, read[one].value, width)
            ]
        )
        return [*blocks, _memory_lines(trace, cursor, width)]

    def _check_lines(
        self, trace: Trace, cursor: Cursor, read: dict[Tensor, _Read], width: int
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
            return [_pair(width, "check", (text.safe(str(error), 200), ink.WARN))]
        if found is None:
            return [_pair(width, "check", ("output not recorded", ink.DIM))]
        sign, style = ("✓", ink.GOOD) if found.passed else ("✗", ink.BAD)
        words = f"{sign} {found.error:.1e}"
        what = f" {text.safe(trace.site(where[1]).rule, 20)}(qkᵀ)v − out"
        if len(words) + len(what) > width - _NAME - 1:
            what = " |Δ| of out"  # half of it would be another formula
        return [_pair(width, "check", (words, style), (what, ink.DIM))]

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
        if sum(len(words) for words, _ in said) + len(spread) <= width - _NAME - 1:
            said.append((spread, ink.DIM))  # half a number would be another number
        return [_pair(width, letter, *said)]


class _Read:
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


def _pair(width: int, name: str, *pieces: Piece, names: int = _NAME) -> Strip:
    return line(width, (" ", ink.DIM), (padded(name, names), ink.DIM), *pieces)


def _long(width: int, name: str, *pieces: Piece) -> list[Strip]:
    """As `_pair`, on as many lines as it takes."""
    lead: Piece = (f" {padded(name, _NAME)}", ink.DIM)
    return wrapped([lead, *pieces], width, indent=_NAME + 1)


def _kind_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """What is particular about the layer's attention."""
    words = attention_is(trace, cursor.layer, cursor.step)
    return _long(width, "kind", (" · ".join(words), ink.TOKEN)) if words else []


def _origin_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    try:
        found = origin(trace, cursor.step, cursor.layer, cursor.row, cursor.sequence)
    except KvtraceError as error:
        return [_pair(width, "row", (text.safe(str(error), 200), ink.WARN))]
    word = "padding" if found.padding else "encoder row"
    if found.for_none:
        word = NO_SINGLE
    if found.token >= 0 and not found.padding:
        word = text.token(trace.token_text(found.token), max(width - 16, 8))
    place = f"position {found.position} · slot {found.slot}"
    if found.for_none:
        place = f"slot {found.slot}"
    if len(place) > width - _NAME - 1:
        place = f"pos {found.position} · slot {found.slot}"
    pool = pool_text(trace, cursor.step, cursor.layer, cursor.row, cursor.sequence)
    at = [_pair(width, "at", (place, ink.TEXT))]
    if pool:
        at = _long(width, "at", (f"{place} · {pool}", ink.TEXT))
    return [
        _pair(width, "token", (word, ink.TOKEN)),
        *at,
        _pair(width, "written", *_written(found, cursor)),
    ]


def _written(found: Origin, cursor: Cursor) -> Iterator[Piece]:
    """By which step, for whom, and what became of it."""
    if found.written is None:
        yield "by a step that is lost", ink.WARN
    else:
        now = " (now)" if found.written == cursor.step else ""
        yield f"step {found.written}{now}", ink.TEXT
    if found.changed:
        yield f", first step {found.first}", ink.WARN
    if found.sequence != cursor.sequence:
        yield f", sequence {found.sequence}", ink.TEXT
    if found.shared_from is not None:
        yield f", by L{found.shared_from}", ink.TEXT
    if found.evicted:
        yield ", then evicted", ink.WARN


def _number_lines(found: dict[Tensor, _Read], cursor: Cursor, width: int) -> list[Strip]:
    """The numbers under the crosshair in both lanes, side by side."""
    wide = width >= 40
    size = 10 if wide else max((width - _NAME - 2) // 2, 6)
    head: list[Piece] = [
        (padded(lane, size, right=True) + " ", LANE_INKS.get(lane, ink.TEXT))
        for lane in (cursor.base, cursor.lane)
    ]
    if wide:
        head.append((padded("|Δ|", size - 1, right=True), ink.DIM))
    lines = [_pair(width, "", *head)]
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
        lines.append(_pair(width, LETTERS[tensor], *cells))
    return lines


def _other(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else number(value)


def _difference_lines(step: LaneStep | None, found: dict[Tensor, _Read], width: int) -> list[Strip]:
    """How far the lanes are apart, relative: in the cell, in its row, in the whole head."""
    compared = {
        tensor: read.both
        for tensor, read in found.items()
        if read.both is not None and read.both.verdict is not Verdict.NOT_COMPARED
    }
    if not compared:
        why = "not compared" if step is None else "rows of the other lane not kept"
        return _long(width, "lanes", (why, ink.DIM))
    digits = 1 if width >= 36 else 0
    heads = [padded(word, 6 + 2 * digits, right=True) for word in ("cell", "row", "head")]
    names = min(_NAME, width - 22)
    lines = [_pair(width, "Δ rel.", ("  ", ink.DIM), ("".join(heads), ink.DIM), names=names)]
    for tensor, both in compared.items():
        cell, row = found[tensor].apart()
        sign = sign_of(both.verdict)
        pieces: list[Piece] = [(f"{sign} ", _VERDICT_INKS[both.verdict])]
        head = np.inf if np.isnan(both.largest) else both.largest
        for apart in (cell, row, float(head)):
            meant, share = _meant(apart, both)
            said = padded(_share(share, digits), 6 + 2 * digits, right=True)
            pieces.append((said, _VERDICT_INKS[meant]))
        lines.append(_pair(width, LETTERS[tensor], *pieces, names=names))
    return [*lines, *_verdict_lines(compared, width)]


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
    return _long(width, "lanes", *pieces)


def _not_finite(found: Statistics) -> Iterator[Piece]:
    if found.nan:
        yield f"{found.nan} NaN ", ink.BAD
    if found.infinite:
        yield f"{found.infinite} Inf ", ink.BAD


def _layer_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """What the step did to the rows the layer reads, and where it is written."""
    site = trace.site(cursor.layer)
    group = trace.cache_step(cursor.step, cursor.layer)
    did = change(trace, site.reads, group).text
    if site.shared_from is not None:
        did = f"L{site.shared_from} wrote: {did}"
    lines = _long(width, "did", (did, ink.TEXT))
    lines.append(_pair(width, "module", (_ending(text.safe(site.module, 120), width), ink.TEXT)))
    others = readers(trace, cursor.layer)
    if others:
        lines.append(_pair(width, "read by", (f"L{', L'.join(map(str, others))} too", ink.TEXT)))
    if site.code:
        lines.append(_pair(width, "code", (_ending(text.safe(site.code, 120), width), ink.TOKEN)))
    return lines


def _ending(words: str, width: int) -> str:
    """The end of it, where the whole does not fit: paths differ there."""
    room = max(width - _NAME - 1, 4)
    return words if len(words) <= room else f"…{words[1 - room :]}"


def _memory_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """What the cache takes, and what part of it is recurrent."""
    size = units.byte_size(trace.step(cursor.step).cost.cache_bytes)
    lines = [_pair(width, "cache", (f"{size}, all layers", ink.TEXT))]
    states = [layer for layer in trace.meta.cache_layers if layer.kind == "state"]
    if states:
        each = units.byte_size(sum(layer.state_bytes for layer in states))
        lines.append(_pair(width, "states", (f"{each} in {len(states)} layers", ink.WARN)))
    return lines
