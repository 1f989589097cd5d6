"""Layers × heads: one number a head, so that the interesting one can be found.

Measures of the weights need every layer's cache. Where that takes more than a moment they are
calculated a few milliseconds at a time, after the frame, and kept; until a step's are complete,
the layers that are missing show what the step before showed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from time import perf_counter

import numpy as np
from textual.strip import Strip
from textual.timer import Timer

from kvtrace.analysis.heads.grid import (
    WEIGHT_MEASURES,
    Grid,
    Measure,
    divergence,
    norm,
    weight_measures,
)
from kvtrace.analysis.lanes.between import between
from kvtrace.analysis.lanes.compare import tolerance_of
from kvtrace.errors import KvtraceError
from kvtrace.trace import CACHED, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import ColourScale, Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import line
from kvtrace_tui.drawing.maps.grid import GridLayout, layer_grid
from kvtrace_tui.drawing.maps.heat import Look, legend
from kvtrace_tui.drawing.palettes import PALETTES
from kvtrace_tui.drawing.shade import Shade, nice_ceiling
from kvtrace_tui.panes.pane import Pane
from kvtrace_tui.panes.rows import RowStore, Shelf

_KEPT = 256
_FIRST_S, _SLICE_S, _PAUSE_S = 0.002, 0.008, 0.04
_BREATH_S = 0.003
"""Between two slices: a key that was pressed meanwhile comes first."""

_ORDER = (
    Measure.ENTROPY,
    Measure.STRONGEST,
    Measure.INDUCTION,
    Measure.PREVIOUS,
    Measure.FIRST,
    Measure.SAME_TOKEN,
    Measure.SINK,
    Measure.QUERY_NORM,
    Measure.OUTPUT_NORM,
    Measure.DIVERGENCE,
)


class _Work:
    """Measures that need rows of every layer, layer by layer: tables [sites, heads]."""

    measures: tuple[Measure, ...] = tuple(WEIGHT_MEASURES)

    def __init__(self, store: RowStore, cursor: Cursor) -> None:
        self.store, self.trace = store, store.trace
        trace = store.trace
        self.cursor = cursor
        shape = len(trace.meta.sites), trace.meta.max_heads
        self.tables = {one: np.full(shape, np.nan, np.float32) for one in self.measures}
        self.done = 0

    def of_layer(self, layer: int) -> Mapping[Measure, Floats]:
        """All weight measures of one query row."""
        at = self.cursor
        keys = self.store.layer_keys(at.step, layer, at.sequence)
        where = at.step, layer, at.sequence, at.query
        return weight_measures(self.trace, *where, keys=keys)

    @property
    def complete(self) -> bool:
        return self.done == len(self.trace.meta.sites)

    def go_on(self, seconds: float) -> None:
        """Calculate for a while, at least one layer."""
        until = perf_counter() + seconds
        while not self.complete:
            layer = self.done
            self.done += 1
            try:
                found = self.of_layer(layer)
            except KvtraceError:
                continue  # a damaged layer stays empty; the maps say what is wrong with it
            for measure, row in found.items():
                self.tables[measure][layer, : len(row)] = row
            if perf_counter() > until:
                return


class _Between(_Work):
    """How far two lanes are apart that are both not the cached one."""

    measures = (Measure.DIVERGENCE,)

    def of_layer(self, layer: int) -> Mapping[Measure, Floats]:
        """The lanes' own rows, compared."""
        at = self.cursor
        lanes = at.base, at.lane
        return {Measure.DIVERGENCE: between(self.trace, at.step, layer, at.sequence, lanes)}


class GridPane(Pane):
    """The grid, and the one number under the cursor.

    Attributes:
        measure: What is shown; in the views that compare lanes, their difference.
    """

    of_layers = True
    speaks = True
    spots = None  # its measures are worked out when the keys are quiet anyway

    def __init__(self, shelf: Shelf, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._shelf = shelf
        self.measure = Measure.ENTROPY
        self._works: OrderedDict[Hashable, _Work] = OrderedDict()
        self._before: _Work | None = None
        self._timer: Timer | None = None
        self._pause = _PAUSE_S
        self._expected_s = _FIRST_S
        self._high: dict[Measure, float] = {}
        self._layout = GridLayout.fit(0, 0, (1, 1), (0, 0))

    def next_measure(self) -> Measure:
        """Show another measure."""
        self.measure = _ORDER[(_ORDER.index(self.measure) + 1) % len(_ORDER)]
        self.redraw()
        return self.measure

    def _shown(self, cursor: Cursor) -> Measure:
        return Measure.DIVERGENCE if cursor.view.differs else self.measure

    def depends(self, cursor: Cursor) -> Hashable:
        """The query row, the place in the grid, and the colours."""
        return (
            cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.query, cursor.inside,
            cursor.view.differs, cursor.base, cursor.lane, cursor.palette, cursor.scale,
        )  # fmt: skip

    def name_line(self, width: int) -> list[Strip]:
        """Its name."""
        return [self.title_line(width, "heads")]

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Title, grid, legend with the number of the cursor's head."""
        measure = self._shown(cursor)
        table = self._table(trace, cursor, measure)
        shade = self._shade(trace, cursor, measure, table)
        look = Look(PALETTES[cursor.palette % len(PALETTES)], self.terminal, shade)
        mark = cursor.layer, cursor.head
        layers, heads = table.shape
        self._layout = GridLayout.fit(layers, heads, (width, height - 2), mark)
        drawn = layer_grid(
            table,
            self._layout,
            look,
            mark,
            run_until=cursor.layer if cursor.inside else None,
            flagged=frozenset(
                (one.layer, one.step == cursor.step)
                for one in self.found
                if one.layer is not None and one.stops
            ),
        )
        value = float(table[mark]) if cursor.layer < layers and cursor.head < heads else np.nan
        said = "–" if np.isnan(value) else f"{value:.3g}"
        where = f"L{cursor.layer} H{cursor.head} "
        room = width - len(look.shade.label) - len(where) - len(said) - 2
        foot = line(
            width,
            *legend(look, max(min(8, width // 4, room), 2)),  # the bar gives way to the number
            right=[(where, ink.DIM), (said, ink.ACCENT)],
        )
        return [self.title_line(width, "heads", measure.value), *drawn, foot]

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """The layer and head under a cell."""
        found = self._layout.at(x, y - 1)
        return {} if found is None else {"layer": found[0], "head": found[1]}

    # -- numbers -----------------------------------------------------------------------------

    def _table(self, trace: Trace, cursor: Cursor, measure: Measure) -> Grid:
        if measure is Measure.DIVERGENCE and cursor.base == CACHED:
            return divergence(trace, cursor.step, cursor.lane)
        if not measure.of_weights and measure is not Measure.DIVERGENCE:
            table = np.full((len(trace.meta.sites), trace.meta.max_heads), np.nan, np.float32)
            for layer in range(len(table)):
                row = norm(trace, cursor.step, layer, measure, cursor.sequence, cursor.query)
                table[layer, : len(row)] = row
            return table
        work = self._work(trace, cursor, measure)
        if not work.complete and self._expected_s <= _FIRST_S:
            work.go_on(self._expected_s)
        table = work.tables[measure]
        if work.complete:
            self._before = work
            return table
        self._wake()
        before = self._before
        if before is not None and before.trace is trace and measure in before.tables:
            table = table.copy()
            table[work.done :] = before.tables[measure][work.done :]
        return table

    def _work(self, trace: Trace, cursor: Cursor, measure: Measure) -> _Work:
        key: Hashable = (id(trace), cursor.step, cursor.sequence, cursor.query)
        make = _Work
        if measure is Measure.DIVERGENCE:
            key, make = (
                (id(trace), cursor.step, cursor.sequence, cursor.base, cursor.lane),
                _Between,
            )
        found = self._works.get(key)
        if found is None or found.trace is not trace:
            found = self._works[key] = make(self._shelf.of(trace), cursor)
            while len(self._works) > _KEPT:
                self._works.popitem(last=False)
        return found

    def _wake(self) -> None:
        """Go on when the keys are quiet."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(self._pause, self._go_on)
        self._pause = _PAUSE_S

    def _go_on(self) -> None:
        self._timer = None
        if self._trace is None:
            return
        started = perf_counter()
        work = self._work(self._trace, self._cursor, self._shown(self._cursor))
        before = work.done
        work.go_on(_SLICE_S)
        if work.done > before:
            each = (perf_counter() - started) / (work.done - before)
            self._expected_s = each * len(self._trace.meta.sites)
        self._pause = _PAUSE_S if work.complete else _BREATH_S
        self.redraw()

    def _shade(self, trace: Trace, cursor: Cursor, measure: Measure, table: Grid) -> Shade:
        """Shares of weight from 0 to 1; others up to the largest seen, so that it stays put."""
        if measure.of_weights and measure is not Measure.ENTROPY:
            return Shade(False, 1.0, cursor.scale)
        if measure is Measure.DIVERGENCE:
            tolerance = tolerance_of(trace, cursor.lane)
            high = max(Shade.of(table, signed=False, kind=ColourScale.LINEAR).high, tolerance)
            return Shade(False, nice_ceiling(high), ColourScale.LOG)
        seen = Shade.of(table, signed=False, kind=ColourScale.LINEAR).high
        if np.isnan(table).all():
            return Shade(False, self._high.get(measure, 1.0), cursor.scale)
        self._high[measure] = max(self._high.get(measure, 0.0), seen)
        return Shade(False, self._high[measure], cursor.scale)
