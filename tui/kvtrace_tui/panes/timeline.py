"""The run over time: tokens, milliseconds, marks, and what could have come next."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from kvtrace.analysis.candidates import Candidate, Candidates, candidates
from kvtrace.trace import Trace
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import spark, strongest
from kvtrace_tui.drawing.binning import Binning
from kvtrace_tui.drawing.lines import Piece, line, padded
from kvtrace_tui.drawing.tokens import TokenStrip, shown_token, token_strip
from kvtrace_tui.panes.chronicle import Chronicle, Told
from kvtrace_tui.panes.pane import Pane

if TYPE_CHECKING:
    from kvtrace.analysis.branches import Branches

_GUTTER = 9
_WIDEST = 6
"""Cells of a step's column, at most."""

_BREAK, _FINDING = ("●", ink.WARN), ("◆", ink.BAD)


class TimelinePane(Pane):
    """Four lines, and one for each sequence where there is room."""

    grows = True
    spots = ("_told", "_rows", "_strip", "_columns")

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._signs: dict[int, tuple[str, Style]] = {}
        self._chronicle: Chronicle | None = None
        self._told = Told([], [], -1)
        self._rows: dict[int, int] = {}
        self._strip = TokenStrip((), ())
        self._columns = Binning(0, 1, 1)

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
        """Tokens, milliseconds, marks, branches, candidates."""
        chronicle = self._read(trace)
        told = self._told = chronicle.told(cursor.step, cursor.sequence)
        room = max(width - _GUTTER, 1)
        self._strip = token_strip(told.texts, told.current, room, told.rejected)
        self._columns = Binning.fit(len(trace), min(room, len(trace) * _WIDEST))
        row = int(np.searchsorted(trace.overview["number"], cursor.step))
        at = self._columns.cells_of(row)
        named = ink.TITLE_FOCUSED if self.focused_title else ink.DIM
        return [
            line(width, (" tokens ", named), (" ", ink.DIM), *self._strip.pieces),
            line(width, (" ms/step ", ink.DIM), *self._times(trace, at)),
            line(
                width,
                (padded(_numbered(cursor.step), _GUTTER), ink.STRONG),
                *self._marks(trace, at),
            ),
            *self._branch_lines(trace, cursor, width, height - 4),
            line(
                width,
                (" next    ", ink.DIM),
                *self._next(trace, cursor, room),
            ),
        ]

    def _next(self, trace: Trace, cursor: Cursor, room: int) -> list[Piece]:
        """What was chosen, and what could have been."""
        found = candidates(trace, cursor.step, cursor.sequence)
        if found.chosen is None and not found.ranked and not trace.step(cursor.step).top:
            return [("no logits were seen", ink.DIM)]
        if found.chosen is None:
            return _rivals(found, room, self._unchosen(trace, cursor))
        least = found.ranked[-1].probability if found.ranked else None
        verb = "fed " if found.fed else "chose "
        return _rivals(found, room, [(verb, ink.DIM), *_one(found.chosen, ink.CHOSEN, least)])

    def _unchosen(self, trace: Trace, cursor: Cursor) -> list[Piece]:
        """What became of a step whose choice is in no step and in no note: a beam, say."""
        last = cursor.step == trace.numbers[-1]
        if last and trace.ending is None:
            return [("not chosen yet", ink.DIM)]
        tree = None if self._chronicle is None else self._chronicle.tree
        here = None if tree is None else tree.places.get((cursor.step, cursor.sequence))
        if last or tree is None or here is None:
            return [("choice not recorded", ink.DIM)]
        heirs = [node.tokens[0] for node in tree.nodes if node.parent == here and node.tokens]
        if not heirs:
            return [("nothing went on from here", ink.DIM)]
        pieces: list[Piece] = [("went on with", ink.DIM)]
        for token in heirs:
            pieces += [(" ", ink.DIM), (shown_token(trace.token_text(token), 16), ink.CHOSEN)]
        return pieces

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """The step under a cell: of a token in the first line, of a column in the others."""
        if self._trace is None or self._chronicle is None or x < _GUTTER:
            return {}
        if y == 0:
            found = self._strip.token_at(x - _GUTTER)
            return {} if found is None else {"step": self._told.steps[found]}
        numbers = self._trace.numbers
        rows = self._columns.indices_of(x - _GUTTER)
        if not rows or (y >= 3 and y not in self._rows):
            return {}
        chosen = {"sequence": self._rows[y]} if y in self._rows else {}
        return {"step": numbers[rows.start]} | chosen

    def _read(self, trace: Trace) -> Chronicle:
        chronicle = self._chronicle
        if chronicle is None or chronicle.trace is not trace:
            chronicle = self._chronicle = Chronicle(trace)
        chronicle.update()
        return chronicle

    def _branch_lines(self, trace: Trace, cursor: Cursor, width: int, count: int) -> list[Strip]:
        """A line for each sequence: the way the cursor is on, and whose rows were taken over."""
        tree = None if self._chronicle is None else self._chronicle.tree
        self._rows = {}
        if tree is None or count <= 0:
            return []
        sequences = int(trace.overview["sequences"].max(initial=1))
        first = min(max(cursor.sequence - count // 2, 0), max(sequences - count, 0))
        lit = set(tree.line(cursor.step, cursor.sequence))
        lines: list[Strip] = []
        for row in range(first, min(first + count, sequences)):
            self._rows[3 + len(lines)] = row
            here = row == cursor.sequence
            name = (padded(f" B{row}", _GUTTER), ink.STRONG if here else ink.DIM)
            lines.append(line(width, name, *_way(tree, trace, row, lit, self._columns)))
        return lines

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


def _numbered(step: int) -> str:
    """The step, before its marks; a long number stands alone."""
    said = f" step {step}"
    return said if len(said) <= _GUTTER else f" {step}"


def _way(tree: Branches, trace: Trace, sequence: int, lit: set[int], bins: Binning) -> list[Piece]:
    """One sequence over the steps: ━ the way the cursor is on; a digit: took over that one."""
    numbers = trace.numbers
    row = [" "] * bins.cells
    inks = [ink.FAINT] * bins.cells
    for cell in range(0, bins.cells, bins.stretch):
        number = numbers[bins.indices_of(cell)[-1]]
        node = tree.places.get((number, sequence))
        if node is None:
            continue
        twin = any(tree.places.get((number, other)) == node for other in range(sequence))
        sign, style = ("━", ink.CACHED) if node in lit else ("┄" if twin else "─", ink.DIM)
        for at in range(cell, min(cell + bins.stretch, bins.cells)):
            row[at], inks[at] = sign, style
        origin = tree.origins.get((number, sequence), sequence)
        if origin != sequence and origin >= 0:
            row[cell], inks[cell] = str(origin)[-1], ink.WARN
    return _merged(row, inks)


def _merged(row: list[str], inks: list[Style]) -> list[Piece]:
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(row) + 1):
        if end == len(row) or inks[end] is not inks[start]:
            pieces.append(("".join(row[start:end]), inks[start]))
            start = end
    return pieces


def _rivals(found: Candidates, room: int, chosen: list[Piece]) -> list[Piece]:
    """The chosen token first, then the others with their probabilities."""
    pieces = list(chosen)
    if any(rival.probability is not None and isnan(rival.probability) for rival in found.ranked):
        return [*pieces, ("  the logits are not finite", ink.BAD)]
    if found.margin is not None and room > 60:
        led = bool(found.ranked) and found.ranked[0].chosen
        words = f"margin {found.margin:.2f} over" if led else f"best leads by {found.margin:.2f}:"
        pieces.append((f"  {words}", ink.DIM))
    room -= sum(cell_len(words) for words, _ in pieces)
    for rival in found.ranked:
        if rival.chosen:
            continue
        one: list[Piece] = [("  ", ink.DIM), *_one(rival, ink.TOKEN)]
        room -= sum(cell_len(words) for words, _ in one)
        if room < 0:  # half a number would be another number
            break
        pieces += one
    return pieces


def _one(one: Candidate, style: Style, least: float | None = None) -> list[Piece]:
    """A token with its probability: at most `least`, that of the last one that was recorded."""
    share = "?"
    if one.probability is not None and not isnan(one.probability):
        share = f"{one.probability:.1%}"
    elif one.probability is None and least is not None and not isnan(least):
        share = f"≤{least:.1%}"
    return [
        (shown_token(one.text, 16), style),
        (f" {share}", ink.STRONG if one.chosen else ink.DIM),
    ]
