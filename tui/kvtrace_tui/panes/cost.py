"""What every step cost, cached against recomputed, and why the time saved is less.

What it asks loads when it is first drawn: the first picture comes sooner, and is without it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from textual.strip import Strip

from kvtrace import units
from kvtrace.analysis.cost.costs import StepCost, step_cost, why
from kvtrace.trace import Trace
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import layered, strongest
from kvtrace_tui.drawing.binning import Binning
from kvtrace_tui.drawing.lines import Piece, beside, columns, line
from kvtrace_tui.panes.pane import Pane, wrapped

if TYPE_CHECKING:
    from kvtrace.analysis.cost.history import History, SoFar
    from kvtrace.analysis.cost.savings import Saving

_PARTS = 46
_FEW = 4
"""Parts that are worth the room beside a chart where not all have any."""

_NARROWEST = 24
"""Cells that a chart has at least, beside the parts."""

_TITLE = len(" cost  FLOPs per step  ")
_TIMES_AT_ONCE = 100
"""Comparisons read for a picture: a long run's are read little by little."""

_REST_S = 0.05
_WIDEST = 12
"""Cells of a step's column, at most."""

_NOW = (Style(color="#f0b27a", bgcolor=ink.PAPER), Style(color="#8fd0f5", bgcolor=ink.PAPER))
_PAST = (Style(color="#8a5a2e", bgcolor=ink.PAPER), Style(color="#3f86b3", bgcolor=ink.PAPER))
_LATER = (Style(color="#4a3520", bgcolor=ink.PAPER), Style(color="#27506b", bgcolor=ink.PAPER))


class CostPane(Pane):
    """This step and all so far, a chart over all; beside them, where there is room, the parts."""

    grows = True
    spots = ("_columns",)

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._history: tuple[Trace, History] | None = None
        self._columns = Binning(0, 1, 1)

    def depends(self, cursor: Cursor) -> Hashable:
        """The step."""
        return cursor.step

    def name_line(self, width: int) -> list[Strip]:
        """Its name."""
        return [self.title_line(width, "cost")]

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Title, this step and all so far, chart, and why."""
        from kvtrace.analysis.cost.history import so_far
        from kvtrace.analysis.cost.savings import savings

        cost = step_cost(trace, cursor.step)
        past = self._past(trace)
        sums = so_far(past, cursor.step)
        saved, waits = savings(trace, cursor.step), past.looked < sums.steps
        right = _bytes(cost, saved)
        if len(right) + _TITLE > width:
            right = _bytes(cost)
        lines = [self.title_line(width, "cost", "FLOPs per step", right=right)]
        reason = wrapped([(f" {why(cost)}", ink.DIM)], width)[: max(height - 4, 0)]
        if height - 3 - len(reason) < 2:
            reason = []
        told = [_now(cost), _sums(sums, waits=waits)]
        body = self._body(cost, past, told, cursor.step, (width, height - 1 - len(reason)))
        return [*lines, *body, *reason]

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """The step whose column is under a cell."""
        if self._history is None or y < 3:
            return {}
        rows = self._columns.indices_of(x)
        return {"step": int(self._history[1].numbers[rows.start])} if rows else {}

    def _past(self, trace: Trace) -> History:
        from kvtrace.analysis.cost.history import history

        kept = self._history
        before = None
        if kept is not None and kept[0] is trace:
            before = kept[1]
            if before.looked == len(trace) and trace.ending is not None:
                return before
        found = history(trace, before=before, at_most=_TIMES_AT_ONCE)
        if found.looked < found.numbers.size and self.is_running:
            self.set_timer(_REST_S, self.redraw)
        self._history = trace, found
        return found

    def _body(
        self,
        cost: StepCost,
        past: History,
        told: list[list[Piece]],
        number: int,
        size: tuple[int, int],
    ) -> list[Strip]:
        """What is told, the chart under it, and the parts beside both or beside the chart."""
        width, height = size
        parts = _part_lines(cost)
        left = width - _PARTS - 2
        beside_all = left >= max(_length(pieces) for pieces in told)
        beside_chart = not beside_all and (
            left >= _NARROWEST and height - len(told) >= min(len(parts), _FEW)
        )
        words = [line(width, *_whole(pieces, width)) for pieces in told]
        room = left if beside_all or beside_chart else width
        chart = self._chart(past, number, (room, max(height - len(told), 0)))
        if beside_all:
            return _with_parts([*words, *chart], parts[:height], left)
        if beside_chart:
            chart = _with_parts(chart, parts[: height - len(told)], left)
        return [*words, *chart]

    def _chart(self, past: History, number: int, size: tuple[int, int]) -> list[Strip]:
        """Recomputed behind, cached in front, to the same scale."""
        width, height = size
        count = past.numbers.size
        self._columns = bins = Binning.fit(count, min(width, count * _WIDEST))
        high = float(max(past.recomputed_flops.max(initial=0), past.cached_flops.max(initial=0)))
        if high <= 0:
            return [line(width, (" FLOPs were not counted", ink.DIM))]
        back, front = (
            _shares(past.recomputed_flops, bins, high),
            _shares(past.cached_flops, bins, high),
        )
        at = bins.cells_of(int(np.searchsorted(past.numbers, number)))
        inks = [_PAST] * at.start + [_NOW] * len(at) + [_LATER] * (bins.cells - at.stop)
        return layered(back, front, height, inks)


def _shares(flops: NDArray[np.int64], bins: Binning, high: float) -> list[float]:
    largest = strongest(flops.astype(np.float64), bins.bins) / high
    shares: list[float] = np.repeat(largest, bins.stretch).tolist()
    return shares


def _with_parts(lines: list[Strip], parts: list[Strip], width: int) -> list[Strip]:
    return beside([(lines, width), ([], 2), (parts, _PARTS)])


def _length(pieces: list[Piece]) -> int:
    return sum(len(words) for words, _ in pieces)


def _whole(pieces: list[Piece], width: int) -> list[Piece]:
    """As many pieces as fit: half a number would be another number."""
    while pieces and _length(pieces) > width:
        pieces = pieces[:-1]
    return pieces


def _now(cost: StepCost) -> list[Piece]:
    """This step in both lanes."""
    mine, theirs = cost.cached, cost.recomputed
    pieces: list[Piece] = [
        (" step    ", ink.DIM),
        ("cached ", ink.DIM), (units.flops(mine.flops), ink.CACHED),
        ("  recomputed ", ink.DIM), (units.flops(theirs.flops), ink.RECOMPUTED),
        (f"  {units.ratio(theirs.flops, mine.flops)}", ink.STRONG),
    ]  # fmt: skip
    return [*pieces, *_times(mine.elapsed_ns, theirs.elapsed_ns)]


def _sums(sums: SoFar, *, waits: bool) -> list[Piece]:
    """All steps up to this one, in both lanes; `waits`: not every time has been read yet."""
    pieces: list[Piece] = [
        (" so far  ", ink.DIM),
        ("cached ", ink.DIM), (units.flops(sums.cached_flops), ink.CACHED),
        ("  recomputed ", ink.DIM), (units.flops(sums.recomputed_flops), ink.RECOMPUTED),
        (f"  {units.ratio(sums.recomputed_flops, sums.cached_flops)}", ink.STRONG),
    ]  # fmt: skip
    lane = "being added up" if waits else "not measured"
    return [*pieces, *_times(sums.elapsed_ns, sums.lane_ns, lane)]


def _times(mine: int | None, theirs: int | None, lane: str = "not measured") -> list[Piece]:
    if mine is None:
        return [("   time not measured", ink.DIM)]
    pieces: list[Piece] = [("   ", ink.DIM), (units.duration(mine), ink.CACHED)]
    if theirs is None:
        return [*pieces, (f" (recomputed: {lane})", ink.DIM)]
    pieces += [(" / ", ink.DIM), (units.duration(theirs), ink.RECOMPUTED)]
    return [*pieces, (f"  {units.ratio(theirs, mine)}", ink.STRONG)]


def _bytes(cost: StepCost, saved: Sequence[Saving] = ()) -> str:
    """Memory, what it would be without the first thing that saves some, and traffic."""
    held = units.byte_size(cost.cache_bytes)
    if saved:
        if saved[0].held_bytes != cost.cache_bytes:  # room for more rows was allocated, say
            held += f", its rows {units.byte_size(saved[0].held_bytes)}"
        held += f" ({units.byte_size(saved[0].otherwise_bytes)} {saved[0].what})"
    read = units.byte_size(cost.cached.bytes_read - cost.weight_bytes)
    return f"cache {held} · reads {read} of it and {units.byte_size(cost.weight_bytes)} of weights"


def _part_lines(cost: StepCost) -> list[Strip]:
    """FLOPs by part, the largest first."""
    shown = sorted(cost.parts, key=lambda part: part.recomputed, reverse=True)
    return [
        columns(
            _PARTS,
            (part.title, 20, ink.DIM),
            (units.flops(part.cached), -11, ink.CACHED),
            (units.flops(part.recomputed), -12, ink.RECOMPUTED),
        )
        for part in shown
        if part.cached or part.recomputed
    ]
