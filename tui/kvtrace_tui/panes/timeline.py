"""The run over time: tokens, milliseconds, marks, and what could have come next."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import numpy as np
from rich.style import Style
from textual.strip import Strip

from kvtrace import text
from kvtrace.analysis.candidates import Candidate, Candidates, candidates
from kvtrace.trace import Trace
from kvtrace_tui.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import spark, strongest
from kvtrace_tui.drawing.binning import Binning
from kvtrace_tui.drawing.lines import Piece, line, padded
from kvtrace_tui.drawing.tokens import token_strip
from kvtrace_tui.panes.chronicle import Chronicle
from kvtrace_tui.panes.pane import Pane

_GUTTER = 9
_WIDEST = 3
"""Cells of a step's column, at most."""

_BREAK, _FINDING = ("●", ink.WARN), ("◆", ink.BAD)


class TimelinePane(Pane):
    """Four lines, or as many of them as fit."""

    grows = True

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._signs: dict[int, tuple[str, Style]] = {}
        self._chronicle: Chronicle | None = None
        self._spans: tuple[tuple[int, int, int], ...] = ()
        self._columns = Binning(0, 0, 1, 1)

    def mark(self, breakpoints: Iterable[int], findings: Iterable[int]) -> None:
        """Steps that have a breakpoint, and steps that have a finding."""
        signs = dict.fromkeys(breakpoints, _BREAK) | dict.fromkeys(findings, _FINDING)
        if signs != self._signs:
            self._signs = signs
            self.redraw()

    def depends(self, cursor: Cursor) -> Hashable:
        """Step and sequence."""
        return cursor.step, cursor.sequence

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Tokens, milliseconds, marks, candidates."""
        told = self._told(trace, cursor.sequence)
        room = max(width - _GUTTER, 1)
        strip = token_strip(told.texts, told.current(cursor.step), room)
        self._spans = strip.spans
        self._columns = Binning.fit(len(trace), min(room, len(trace) * _WIDEST))
        row = int(np.searchsorted(trace.overview["number"], cursor.step))
        at = self._columns.cells_of(row)
        named = ink.TITLE_FOCUSED if self.focused_title else ink.DIM
        return [
            line(width, (" tokens ", named), (" ", ink.DIM), *strip.pieces),
            line(width, (" ms/step ", ink.DIM), *self._times(trace, at)),
            line(
                width,
                (padded(f" step {cursor.step}", _GUTTER), ink.STRONG),
                *self._marks(trace, at),
            ),
            line(
                width,
                (" next    ", ink.DIM),
                *_rivals(candidates(trace, cursor.step, cursor.sequence), room),
            ),
        ]

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """The step under a cell: of a token in the first line, of a column in the others."""
        if self._trace is None or self._chronicle is None or x < _GUTTER:
            return {}
        if y == 0:
            found = next((i for a, b, i in self._spans if a <= x - _GUTTER < b), None)
            return {} if found is None else {"step": self._chronicle.steps[found]}
        numbers = self._trace.numbers
        rows = self._columns.indices_of(x - _GUTTER)
        return {"step": numbers[rows.start]} if y < 3 and rows else {}

    def _told(self, trace: Trace, sequence: int) -> Chronicle:
        told = self._chronicle
        if told is None or told.trace is not trace or told.sequence != sequence:
            told = self._chronicle = Chronicle(trace, sequence)
        told.update()
        return told

    def _times(self, trace: Trace, at: range) -> list[Piece]:
        """A sparkline up to the slowest decode step: a prefill does not flatten it."""
        overview = trace.overview
        elapsed = np.where(overview["elapsed_ns"] > 0, overview["elapsed_ns"], -1).astype(
            np.float64
        )
        if not (elapsed > 0).any():
            return [("not measured", ink.DIM)]
        decode = elapsed[overview["phase"] == 1]
        high = float(decode.max()) if decode.size and decode.max() > 0 else float(elapsed.max())
        bins = self._columns
        found = np.repeat(strongest(elapsed, bins.bins), bins.stretch)
        columns = spark(found.tolist(), high)
        return [
            (columns[: at.start], ink.CACHED),
            (columns[at.start : at.stop], ink.ACCENT),
            (columns[at.stop :], ink.FUTURE),
        ]

    def _marks(self, trace: Trace, at: range) -> list[Piece]:
        """Every tenth step a tick, ● a breakpoint, ◆ a finding, ▲ here."""
        bins = self._columns
        row = [" "] * bins.cells
        inks = [ink.FAINT] * bins.cells
        for cell in range(0, bins.cells, bins.stretch):
            row[cell] = "┊" if cell // bins.stretch % 10 == 0 else "·"
        if at:
            row[at.start], inks[at.start] = "▲", ink.ACCENT
        numbers = trace.overview["number"]
        for step, (sign, style) in self._signs.items():
            index = int(np.searchsorted(numbers, step))
            if index < len(numbers) and numbers[index] == step:
                cell = bins.cells_of(index).start
                row[cell], inks[cell] = sign, style
        return _merged(row, inks)


def _merged(row: list[str], inks: list[Style]) -> list[Piece]:
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(row) + 1):
        if end == len(row) or inks[end] is not inks[start]:
            pieces.append(("".join(row[start:end]), inks[start]))
            start = end
    return pieces


def _rivals(found: Candidates, room: int) -> list[Piece]:
    """The chosen token first, then the others with their probabilities."""
    if found.chosen is None and not found.ranked:
        return [("no logits were seen", ink.DIM)]
    pieces: list[Piece] = []
    if found.chosen is None:
        pieces.append(("not chosen yet", ink.DIM))
    else:
        pieces += [("chose ", ink.DIM), *_one(found.chosen, ink.CHOSEN)]
    for rival in found.ranked:
        if not rival.chosen:
            pieces += [("  ", ink.DIM), *_one(rival, ink.TOKEN)]
    if found.margin is not None and room > 60:
        pieces.insert(3 if found.chosen else 1, (f"  margin {found.margin:.2f} over", ink.DIM))
    return pieces


def _one(one: Candidate, style: Style) -> list[Piece]:
    share = "?" if one.probability is None else f"{one.probability:.1%}"
    return [(text.token(one.text, 16), style), (f" {share}", ink.STRONG if one.chosen else ink.DIM)]
