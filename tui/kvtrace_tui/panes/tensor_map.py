"""A map of Q, K, V or the output of one head: rows across, features down, one number exact.

As numbers it shows the same rows as a table around the crosshair.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from numpy.typing import NDArray
from textual.strip import Strip

from kvtrace.analysis.heads.tensors import CACHE_TENSORS, attended_runs
from kvtrace.analysis.nature import latents_of, rows_are
from kvtrace.analysis.rows.origin import (
    NO_SINGLE,
    UNKNOWN,
    Rows,
    attended_rows,
    tokens_of_cells,
    tokens_of_rows,
)
from kvtrace.trace import Tensor, Trace, stands_for_none
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, elided, length, line
from kvtrace_tui.drawing.maps.axis import GUTTER, across_labels, down_labels
from kvtrace_tui.drawing.maps.filling import Filling
from kvtrace_tui.drawing.maps.heat import Look, heat_map, legend_beside, legend_line
from kvtrace_tui.drawing.maps.numbers import exactly, number_table
from kvtrace_tui.drawing.maps.pool import pooling_label
from kvtrace_tui.drawing.palettes import PALETTES
from kvtrace_tui.drawing.tokens import shown_token
from kvtrace_tui.panes.pane import Pane, blank, wrapped
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.views import LETTERS, Ranges, Shown, shown

_WIDE = 56
_TIGHT = 24
_NAMED = 10
"""Cells of the name before what a map shows."""


class MapPane(Pane):
    """One tensor.

    Attributes:
        tensor: Which.
    """

    of_layers = True
    spots = ("_bins",)

    def __init__(self, tensor: Tensor, shelf: Shelf, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.tensor = tensor
        self._shelf = shelf
        self._ranges = Ranges()
        self._bins = (Filling(0, 0, 1, 1), Filling(0, 0, 1, 1))

    def depends(self, cursor: Cursor) -> Hashable:
        """Everything but what only other tensors have."""
        rows = cursor.row if self._cached else cursor.query
        return (
            cursor.step, cursor.layer, cursor.head, cursor.sequence, rows, cursor.dim,
            cursor.inside, cursor.base, cursor.lane, cursor.kept, cursor.view, cursor.numbers,
            cursor.palette, cursor.scale, cursor.zoom,
        )  # fmt: skip

    @property
    def _cached(self) -> bool:
        return self.tensor in CACHE_TENSORS

    def name_line(self, width: int) -> list[Strip]:
        """The tensor's letter."""
        return [self.title_line(width, LETTERS[self.tensor])]

    def _heading(self, trace: Trace, cursor: Cursor) -> str:
        """The tensor, and what its rows are: of the cache, or of something else."""
        letter = LETTERS[self.tensor]
        if not self._cached:
            return letter
        if cursor.kept:
            latent = latents_of(trace, cursor.layer) is not None
            part = {"K": "latents", "V": "rotary keys"}[letter] if latent else letter
            return f"{part} kept"
        return f"{letter} {rows_are(trace, cursor.layer)}"

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Title, map or numbers, then the colours and the number under the crosshair."""
        seen = shown(self._shelf.of(trace), self.tensor, cursor)
        lines = [
            self.title_line(
                width, self._heading(trace, cursor), self._about(trace, cursor, seen, width)
            )
        ]
        if seen.note or not len(seen.values):
            note: Piece = (seen.note or "no rows were attended to", ink.WARN)
            return [*lines, *wrapped([note], width)]
        reading = self._reading(trace, cursor, seen, width)
        narrow = width < _WIDE
        if cursor.numbers:
            room = height - 1 - (len(reading) if narrow else 1)
            table = self._numbers(trace, cursor, seen, (width, room))
            foot = [line(width, *elided(one, width)) for one in reading]
            return [*lines, *table, *(foot if narrow else [line(width, *reading[0], *reading[1])])]
        room = height - 2 - (len(reading) + 1 if narrow else 1)
        room -= self._slotted(trace, cursor)
        drawn, colours = self._map(trace, cursor, seen, (width, max(room, 1)))
        if narrow:
            foot = [line(width, *elided(one, width)) for one in (colours, *reading)]
            return [*lines, *drawn, *foot]
        colours = legend_beside(colours, width + 1 - length([*reading[0], *reading[1]]))
        side = min(length(colours), width)
        foot = [line(width - side, *reading[0], *reading[1]), line(side, *colours)]
        return [*lines, *drawn, Strip.join(foot)]

    def _about(self, trace: Trace, cursor: Cursor, seen: Shown, width: int) -> str:
        site = trace.site(cursor.layer)
        head = f"H{cursor.head}"
        if self._cached and site.num_kv_heads != site.num_heads:
            head = f"H{cursor.head} kv {site.kv_head(cursor.head)}"
        rows, dim = seen.values.shape
        if not dim:
            return f"L{cursor.layer} {head}"
        shape = f"[{rows}×{dim}]"
        if width < _TIGHT:
            return f"{shape} {seen.sign}".rstrip()
        if self._cached and cursor.kept:
            one = "all heads" if latents_of(trace, cursor.layer) is not None else head
            words = f"L{cursor.layer} {one} {shape}"
            return f"{words} after the step" if width >= _WIDE else words
        where = f"L{cursor.layer} {head} {shape}"
        verdict = "" if seen.comparison is None else str(seen.comparison.verdict)
        ways = (cursor.shows, verdict), (cursor.shows, seen.sign), (cursor.shows_briefly, seen.sign)
        said = [" ".join((where, *words)).rstrip() for words in ways]
        return next((one for one in said if _NAMED + len(one) <= width), said[-1])

    # -- map ---------------------------------------------------------------------------------

    def _map(
        self, trace: Trace, cursor: Cursor, seen: Shown, size: tuple[int, int]
    ) -> tuple[list[Strip], list[Piece]]:
        """The map with its labels, and what its colours mean."""
        width, height = size
        store = self._shelf.of(trace)
        look = Look(
            PALETTES[cursor.palette % len(PALETTES)],
            self.terminal,
            self._ranges.shade(store, self.tensor, cursor, seen),
            absent_nan=cursor.view.needs_lane,
        )
        rows, dim = seen.values.shape
        mark = self._mark(trace, cursor, seen.values)
        per_line = self.terminal.per_line
        room = width - GUTTER
        down = Filling.fit(dim, height * per_line, zoom=cursor.zoom, focus=mark[0])
        across = Filling.fit(rows, room, grows=self._cached, zoom=cursor.zoom, focus=mark[1])
        self._bins = (down, across)
        labels = down_labels(down, mark[0], -(-down.cells // per_line), per_line)
        rest = width - GUTTER - across.cells
        sides = labels, blank(rest) if rest > 0 else None
        lines = heat_map(seen.values.T, down, across, look, mark, sides)
        axes = self._axes(trace, cursor, across, mark[1], width)
        pooling = pooling_label(down, across)
        return [*lines, *axes], legend_line(look, pooling, width, narrow=width < _WIDE)

    def _axes(
        self, trace: Trace, cursor: Cursor, across: Filling, mark: int, width: int
    ) -> list[Strip]:
        """The position of the rows; below it their slot, in maps where the two part."""
        names = self._positions(trace, cursor)
        lead = ("pos" if names is not None else "row").ljust(GUTTER)
        lines = [line(width, (lead, ink.FAINT), *across_labels(across, names, mark))]
        if self._slotted(trace, cursor):
            slots = self._rows(trace, cursor).slots.tolist()
            lines.append(
                line(width, ("slot".ljust(GUTTER), ink.FAINT), *across_labels(across, slots, mark))
            )
        return lines

    def _slotted(self, trace: Trace, cursor: Cursor) -> bool:
        """Whether a row's slot says something that its position does not."""
        if not self._cached:
            return False
        runs = attended_runs(trace, cursor.step, cursor.layer, cursor.sequence)
        return any(run.slot != run.position for run in runs)

    def _rows(self, trace: Trace, cursor: Cursor) -> Rows:
        """Cells, slots and positions of what is shown of K or V."""
        if cursor.kept:
            from kvtrace.analysis.rows.kept import kept

            found = kept(trace, cursor.step, cursor.layer, cursor.sequence)
            if found is not None:
                return found.rows
        return attended_rows(trace, cursor.step, cursor.layer, cursor.sequence)

    def _mark(self, trace: Trace, cursor: Cursor, values: Floats) -> tuple[int, int]:
        """The crosshair as (feature, row), inside the tensor."""
        row = cursor.row if self._cached else cursor.query
        if self._cached and cursor.kept:
            attended = attended_rows(trace, cursor.step, cursor.layer, cursor.sequence)
            row = _same(attended, cursor.row, self._rows(trace, cursor))
        rows, dim = values.shape
        return min(cursor.dim, dim - 1), min(row, rows - 1)

    def _positions(self, trace: Trace, cursor: Cursor) -> list[int] | None:
        """The position of each row; None where rows have no positions of their own."""
        if self._cached:
            positions: list[int] = self._rows(trace, cursor).positions.tolist()
            return positions
        step = trace.step(cursor.step)
        if step.new_at(trace.site(cursor.layer).index) != step.new:
            return None
        return list(step.positions[min(cursor.sequence, step.num_sequences - 1)])

    # -- numbers -----------------------------------------------------------------------------

    def _numbers(
        self, trace: Trace, cursor: Cursor, seen: Shown, size: tuple[int, int]
    ) -> list[Strip]:
        feature, row = self._mark(trace, cursor, seen.values)
        half = max((size[1] - 1) // 2, 1)
        start = max((row // half - 2) * half, 0)
        part = seen.values[start : start + 5 * half]
        labels = self._labels(trace, cursor, np.arange(start, start + len(part)))
        return number_table(part, labels, (row - start, feature), size)

    def _labels(
        self, trace: Trace, cursor: Cursor, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> list[str]:
        """Position and token of some rows."""
        if self._cached:
            there = self._rows(trace, cursor)
            tokens = self._tokens(trace, cursor, there, rows)
            pairs = zip(there.positions[rows].tolist(), tokens.tolist(), strict=True)
            return [_label(trace, position, token) for position, token in pairs]
        positions = self._positions(trace, cursor)
        if positions is None:
            return [str(row) for row in rows.tolist()]
        step = trace.step(cursor.step)
        ids = step.tokens[min(cursor.sequence, step.num_sequences - 1)]
        return [_label(trace, positions[row], ids[row]) for row in rows.tolist()]

    def _tokens(
        self, trace: Trace, cursor: Cursor, there: Rows, rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Which tokens some rows of K or V are; -1 where unknown."""
        if not cursor.kept:
            return tokens_of_rows(trace, cursor.step, cursor.layer, cursor.sequence, rows)
        site, latents = trace.site(cursor.layer), latents_of(trace, cursor.layer)
        if site.kind != "self":
            return np.full(len(rows), UNKNOWN, np.int64)
        store = site.reads if latents is None else latents.index
        return tokens_of_cells(trace, store, there.cells[rows])

    # -- the number under the crosshair ------------------------------------------------------

    def _reading(
        self, trace: Trace, cursor: Cursor, seen: Shown, width: int
    ) -> tuple[list[Piece], list[Piece]]:
        """The exact number under the crosshair, and where that is."""
        feature, row = self._mark(trace, cursor, seen.values)
        label = self._labels(trace, cursor, np.array([row], np.int64))[0]
        exact = exactly(float(seen.values[row, feature]), cursor.view.needs_lane)
        name = "row" if self._cached else "query"
        index, _, word = label.partition(" ")
        elsewhere = "" if index in ("", str(row)) else f" at {index}"
        if self._slotted(trace, cursor):
            elsewhere += f" slot {int(self._rows(trace, cursor).slots[row])}"
        if width < _TIGHT:
            place = f" {name[0]} {row} dim {feature} "
            return [(f" {exact}", ink.ACCENT)], [(place, ink.DIM), (word, ink.TOKEN)]
        return [(f" {exact}", ink.ACCENT)], [
            (f" {name} ", ink.DIM), (f"{row}", ink.STRONG), (f"{elsewhere} ", ink.DIM),
            (word, ink.TOKEN), (" dim ", ink.DIM), (f"{feature} ", ink.STRONG),
        ]  # fmt: skip

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """The row and feature under a cell."""
        down, across = self._bins
        rows = across.indices_of(x - GUTTER) if x >= GUTTER else range(0)
        dims = down.indices_of((y - 1) * self.terminal.per_line) if y >= 1 else range(0)
        if not rows or not dims or self._cursor.numbers:
            return {}
        if not self._cached:
            return {"query": rows.start, "dim": dims.start}
        row, cursor = rows.start, self._cursor
        if cursor.kept and self._trace is not None:
            attended = attended_rows(self._trace, cursor.step, cursor.layer, cursor.sequence)
            row = _same(self._rows(self._trace, cursor), row, attended)
        return {"row": row, "dim": dims.start}


def _same(these: Rows, row: int, those: Rows) -> int:
    """The row of the same position among others; the closest one where it is not there."""
    if not these.positions.size or not those.positions.size:
        return 0
    position = these.positions[min(row, these.positions.size - 1)]
    return int(np.abs(those.positions - position).argmin())


def _label(trace: Trace, position: int, token: int) -> str:
    if position < 0:
        return f" {NO_SINGLE if stands_for_none(position) else 'padding'}"
    word = "" if token == UNKNOWN else f" {shown_token(trace.token_text(token), 12)}"
    return f"{position}{word}"
