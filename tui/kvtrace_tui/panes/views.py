"""What a map shows of one head's rows in the chosen view, and the range of its colours.

The range is taken from all rows of the head that were read, rounded up, and never shrinks: it
stays put from step to step. Differences are coloured from zero to at least the tolerance, so that
a map of rounding is dark and what exceeds it stands out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from kvtrace.analysis.kept import kept
from kvtrace.analysis.lanes.compare import Comparison, Verdict, compare_rows, tolerance_of
from kvtrace.analysis.tensors import CACHE_TENSORS
from kvtrace.trace import CACHED, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import Cursor, View
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.shade import Shade, nice_ceiling
from kvtrace_tui.panes.rows import RowStore

LETTERS = {Tensor.QUERIES: "Q", Tensor.KEYS: "K", Tensor.VALUES: "V", Tensor.OUTPUT: "out"}

LANE_INKS = {"cached": ink.CACHED, "recomputed": ink.RECOMPUTED, "referee": ink.NEGATIVE}
"""Each lane has its colour everywhere."""

_SIGNS = {Verdict.SUSPICIOUS: "?", Verdict.BUG: "✗", Verdict.NOT_FINITE: "✗"}


def sign_of(verdict: Verdict) -> str:
    """One character that says whether lanes agree."""
    return _SIGNS.get(verdict, "✓")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a map shows.

    Attributes:
        values: [rows, dim].
        note: Why it shows nothing; empty when it shows something.
        comparison: Of the lanes, in the views that need another lane.
    """

    values: Floats
    note: str = ""
    comparison: Comparison | None = None


def shown(store: RowStore, tensor: Tensor, cursor: Cursor) -> Shown:
    """The rows of the cursor's head in its view.

    Raises:
        MissingError: The site did not attend in this step.
        TraceError: The rows are damaged.
    """
    if cursor.kept and tensor in CACHE_TENSORS:
        return _kept(store.trace, tensor, cursor)
    value = base_rows(store, tensor, cursor)
    if value is None:
        empty = np.zeros((0, store.trace.site(cursor.layer).dim(tensor)), np.float32)
        lane = "" if cursor.base == CACHED else f" in the {cursor.base} lane"
        return Shown(empty, f"not recorded{lane}")
    if not cursor.view.needs_lane:
        return Shown(value)
    found = compared(store, tensor, cursor, value)
    if found is None:
        absent = np.full(value.shape, np.nan, np.float32)
        return Shown(absent, _why_absent(store.trace, cursor))
    picked = {
        View.RECOMPUTED: found.other,
        View.ABSOLUTE: found.absolute,
        View.RELATIVE: found.relative,
    }[cursor.view]
    return Shown(picked, comparison=found)


def _kept(trace: Trace, tensor: Tensor, cursor: Cursor) -> Shown:
    """What the cache holds after the step; always as values."""
    found = kept(trace, cursor.step, cursor.layer, cursor.sequence)
    if found is None:
        return Shown(np.zeros((0, 0), np.float32), "the cache keeps nothing of this layer")
    kv_head = trace.site(cursor.layer).kv_head(cursor.head)
    return Shown(found.values(trace, tensor, kv_head))


def base_rows(store: RowStore, tensor: Tensor, cursor: Cursor) -> Floats | None:
    """The cursor's head in the lane whose values are shown; None: it has none.

    Raises:
        MissingError: The site did not attend in this step.
        TraceError: The rows are damaged.
    """
    where = cursor.step, cursor.layer, tensor, cursor.head, cursor.sequence
    return store.head(*where, cursor.base)


def compared(store: RowStore, tensor: Tensor, cursor: Cursor, value: Floats) -> Comparison | None:
    """The cursor's head in both lanes; None: the other lane has no rows of it.

    Raises:
        TraceError: The rows are damaged.
    """
    if store.trace.meta.lane(cursor.lane) is None:
        return None
    where = cursor.step, cursor.layer, tensor, cursor.head, cursor.sequence
    other = store.head(*where, cursor.lane)
    if other is None or other.shape != value.shape:
        return None
    tolerance = tolerance_of(store.trace, cursor.lane)
    return store.answered(
        ("compared", *where, cursor.base, cursor.lane),
        len(value),
        lambda: compare_rows(value, other, tolerance),
    )


class Ranges:
    """The colour ranges in use, so that they do not move with every step."""

    def __init__(self) -> None:
        self._high: dict[Hashable, float] = {}

    def shade(self, store: RowStore, tensor: Tensor, cursor: Cursor, seen: Shown) -> Shade:
        """How the values become colours."""
        differs = cursor.view.differs and seen.comparison is not None
        sample = seen.values
        if not differs:
            plain = cursor.base == CACHED and not cursor.kept
            known = store.known(cursor.layer, tensor, cursor.head) if plain else None
            sample = sample if known is None else known
        key = (
            id(store),
            cursor.layer,
            tensor,
            cursor.head,
            cursor.shows,
            cursor.kept,
            cursor.scale,
        )
        size = (*key, len(sample))
        if size not in self._high or differs or tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            self._high[size] = Shade.of(sample, signed=not differs, kind=cursor.scale).high
        high = max(self._high[size], self._high.get(key, 0.0))
        if differs:
            high = max(high, _tolerated(seen.comparison, cursor.view))
        self._high[key] = high
        return Shade(not differs, high, cursor.scale)


def _tolerated(comparison: Comparison | None, view: View) -> float:
    """The difference that still counts as rounding."""
    if comparison is None:
        return 0.0
    scale = comparison.reference_max if view is View.ABSOLUTE else 1.0
    return nice_ceiling(comparison.tolerance * scale) if scale > 0 else 0.0


def _why_absent(trace: Trace, cursor: Cursor) -> str:
    if trace.meta.lane(cursor.lane) is None:
        return f"there is no {cursor.lane} lane in this trace: not compared"
    if trace.compared(cursor.step, cursor.lane) is None:
        return f"this step was not compared with the {cursor.lane} lane"
    when = " yet" if trace.ending is None else ""
    why = f"the {cursor.lane} lane's rows are not in this trace{when}: only its differences are"
    return why if when else f"{why} (record with --keep-rows for both)"
