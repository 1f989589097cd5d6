"""The tree of a run: every branch a line, what they share written once."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from kvtrace import text
from kvtrace.analysis.branches import Branches, Twig
from kvtrace.analysis.rows.packed import request_name
from kvtrace.trace import Trace
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece
from kvtrace_tui.screens.pages.choices import Rows

_LONGEST = 18
_PROMPT = 8
"""Tokens of a prompt that are shown: its last ones."""


def branch_rows(
    trace: Trace, tree: Branches, lines: Sequence[Twig], at: int, width: int, chosen: int
) -> Rows:
    """All lines of the tree; each is a choice.

    Args:
        trace: For the texts of tokens.
        tree: The branches.
        lines: The tree line by line.
        at: Node that the cursor is on; -1: none.
        width: Cells.
        chosen: Number of the chosen line.
    """
    given_up = _given_up(trace, tree)
    shared = "what branches share is written once; the longest way on stays at the margin"
    ended = " was computed and given up, ✕ was not gone on with, ■ ends a text"
    rows: list[tuple[Sequence[Piece], int]] = [
        ([], -1),
        ([(f" {shared}", ink.DIM)], -1),
        ([(" ", ink.DIM), ("crossed out", ink.REJECTED), (ended, ink.DIM)], -1),
        ([], -1),
    ]
    for index, twig in enumerate(lines):
        last = twig.nodes[-1]
        ends = "" if tree.nodes[last].height else " ✕" if last in given_up else " ■"
        right = f"{ends} {_range(trace, tree, twig)}"
        lit = index == chosen
        lead = f" {'▸' if lit else ' '} {twig.lead}"
        room = width - cell_len(lead) - cell_len(right) - 1
        pieces = _cut(_words(trace, tree, twig, at), room)
        style = ink.SELECTED if lit else ink.DIM
        rows.append(([(lead, ink.ACCENT if lit else ink.DIM), *pieces, (right, style)], index))
    return rows


def _given_up(trace: Trace, tree: Branches) -> set[int]:
    """Nodes that nothing goes on from, while another branch of their text does go on.

    A text whose branches all end there was not given up, and no request of an engine is.
    """
    roots: list[int] = []
    ends: dict[int, int] = {}
    for index, node in enumerate(tree.nodes):
        roots.append(index if node.parent < 0 else roots[node.parent])
        ends[roots[-1]] = max(ends.get(roots[-1], 0), node.step)
    return {
        index
        for index, node in enumerate(tree.nodes)
        if not node.height
        and node.step < ends[roots[index]]
        and trace.step(node.step).packed is None
    }


def _range(trace: Trace, tree: Branches, twig: Twig) -> str:
    """Which sequence or request, and which steps a line is about."""
    first, last = tree.nodes[twig.nodes[0]], tree.nodes[twig.nodes[-1]]
    steps = f"step {first.step}" if first is last else f"steps {first.step}–{last.step}"
    found = trace.step(last.step)
    kinds = {trace.site(site).kind for site in found.attending}
    encodes = kinds == {"encoder"}
    who = request_name(found) or f"B{last.sequence}"
    return f"{who} encoder {steps}" if encodes else f"{who} {steps}"


def _words(trace: Trace, tree: Branches, twig: Twig, at: int) -> list[Piece]:
    """The tokens of a line, those of the cursor's step lit."""
    pieces: list[Piece] = []
    for index in twig.nodes:
        node = tree.nodes[index]
        shown = node.tokens
        if node.parent < 0 and len(shown) > _PROMPT:
            pieces.append((f"{len(shown) - _PROMPT} tokens … ", ink.DIM))
            shown = shown[-_PROMPT:]
        for number, token in enumerate(shown):
            rejected = number >= len(shown) - node.rejected
            style = ink.REJECTED if rejected else ink.CHOSEN if index == at else ink.TOKEN
            pieces += [(text.token(trace.token_text(token), _LONGEST), style), ("│", ink.FAINT)]
    return pieces


def _cut(pieces: list[Piece], room: int) -> list[Piece]:
    """The beginning, as far as it fits; how much is left out."""
    used = 0
    for index, (words, _) in enumerate(pieces):
        used += cell_len(words)
        if used > room - 8 and index + 1 < len(pieces):
            left = sum(words == "│" for words, _ in pieces[index:])
            return [*pieces[:index], (f"… +{left}", ink.DIM)]
    return pieces
