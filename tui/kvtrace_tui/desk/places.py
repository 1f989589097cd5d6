"""Places as people type them, and the tokens that are found there.

Pure; knows nothing of keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from kvtrace.analysis.rows.origin import tokens_of_rows
from kvtrace.errors import UsageError
from kvtrace.trace import Trace
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import Axis, Cursor

_WORDS = {
    "step": "step", "s": "step", "layer": "layer", "l": "layer", "head": "head", "h": "head",
    "sequence": "sequence", "b": "sequence", "query": "query", "q": "query",
    "row": "row", "r": "row", "dim": "dim", "d": "dim",
}  # fmt: skip
_ORDER = ("sequence", "layer", "head", "query", "row", "dim")
"""The earlier ones say how many there are of the later ones."""

_PART = r"([a-zA-Z]*)\s*([+-]?\d{1,18})(?!\d)"
_SLASHED = r"\s*(\d+)/(\d+)(?:/(\d+))?(?:/[a-zA-Z]+)?(?:/(\d+))?\s*"
"""As `--at` takes it: step/layer/head/tensor/sequence. Every tensor has its pane."""

_EXPECTED = "expected `12`, `+5`, `12/3/5`, `L3 H5`, `step 12 layer 3 row 7 dim 0`"


def go_to(text: str, cursor: Cursor, trace: Trace) -> Cursor:
    """The cursor at a place as typed: `12`, `+5`, `12/3/5`, `L3 H5`, `step 12 layer 3 row 7`.

    A number alone is a step; a sign makes it relative.

    Raises:
        UsageError: It is no place, or the trace has no such step, layer or row.
    """
    slashed = re.fullmatch(_SLASHED, text)
    if slashed is not None:
        text = f"step {slashed[1]} layer {slashed[2]} head {slashed[3] or cursor.head}"
        text += f" sequence {slashed[4]}" if slashed[4] else ""
    wanted: dict[str, int] = {}
    rest = text
    for match in re.finditer(_PART, text):
        field = _WORDS.get(match[1].lower() or "step")
        if field is None:
            raise UsageError(f"go to {text[:40]!r}: {match[1][:20]!r} is no place; {_EXPECTED}.")
        signed = match[2][0] in "+-"
        wanted[field] = int(match[2]) + (getattr(cursor, field) if signed else 0)
        rest = rest.replace(match[0], "", 1)
    if not wanted or rest.strip(" ,."):
        raise UsageError(f"go to {text[:40]!r}: {_EXPECTED}.")
    number = wanted.pop("step", cursor.step)
    numbers = trace.numbers
    if numbers and not numbers[0] <= number <= numbers[-1]:
        raise UsageError(f"step {number}: the trace has steps {numbers[0]} to {numbers[-1]}.")
    moved = moves.to_step(cursor, trace, number)
    for name, at in sorted(wanted.items(), key=lambda one: _ORDER.index(one[0])):
        moved = moves.at(moved, trace, Axis(name), at)
        if getattr(moved, name) != at:
            last = getattr(moves.at(moved, trace, Axis(name), 1 << 60), name)
            raise UsageError(f"{name} {at}: here they go from 0 to {last}.")
    return moved


def find_token(text: str, cursor: Cursor, trace: Trace) -> Cursor | None:
    """The nearest row whose token has this text, looking on from the crosshair and round again.

    None: no token of the step's rows has it.
    """
    texts = row_texts(cursor, trace)
    count = len(texts)
    order = [(cursor.row + by) % count for by in range(1, count + 1)]
    found = next((row for row in order if text in texts[row]), None)
    return None if found is None else replace(cursor, row=found)


def row_texts(cursor: Cursor, trace: Trace) -> Sequence[str]:
    """Raw text of the token of every row the layer was given in the step."""
    tokens = tokens_of_rows(trace, cursor.step, cursor.layer, cursor.sequence).tolist()
    return [trace.token_text(token) if token >= 0 else "" for token in tokens]
