"""What a map shows of one head's rows in the chosen view, and the range of its colours.

The range is rounded up, and of K and V taken from more cells than the step has, of Q and the
output also from the first step: it stays put from step to step, and yet depends on nothing but
the trace and the cursor. Differences are coloured from zero to at least the tolerance, so that
a map of rounding is dark and what exceeds it stands out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from kvtrace.analysis.attending import attends
from kvtrace.analysis.heads.tensors import CACHE_TENSORS
from kvtrace.errors import TraceError
from kvtrace.trace import CACHED, ROWS_LEFT_OUT, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import ColourScale, Cursor, View
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.shade import Shade, nice_ceiling
from kvtrace_tui.panes.rows import LOOK_AHEAD, RowStore

if TYPE_CHECKING:
    from kvtrace.analysis.lanes.compare import Comparison

LETTERS = {Tensor.QUERIES: "Q", Tensor.KEYS: "K", Tensor.VALUES: "V", Tensor.OUTPUT: "out"}

LANE_INKS = {"cached": ink.CACHED, "recomputed": ink.RECOMPUTED, "referee": ink.NEGATIVE}
"""Each lane has its colour everywhere."""

NOT_HERE = "did not attend in this step"


class Shown(Struct, frozen=True):
    """What a map shows.

    Attributes:
        values: [rows, dim].
        note: Why it shows nothing; empty when it shows something.
        comparison: Of the lanes, in the views that need another lane.
        sign: One character that says whether they agree.
    """

    values: Floats
    note: str = ""
    comparison: Comparison | None = None
    sign: str = ""


def shown(store: RowStore, tensor: Tensor, cursor: Cursor) -> Shown:
    """The rows of the cursor's head in its view.

    Raises:
        MissingError: The step is damaged.
        TraceError: The rows are damaged.
    """
    if cursor.kept and tensor in CACHE_TENSORS:
        return _kept(store.trace, tensor, cursor)
    if not attends(store.trace, cursor.step, cursor.layer):
        return Shown(np.zeros((0, 0), np.float32), NOT_HERE)
    value = base_rows(store, tensor, cursor)
    if value is None:
        empty = np.zeros((0, store.trace.site(cursor.layer).dim(tensor)), np.float32)
        lane = "" if cursor.base == CACHED else f" in the {cursor.base} lane"
        return Shown(empty, f"not recorded{lane}")
    if not cursor.view.needs_lane:
        return Shown(value)
    from kvtrace_tui.panes.compared import compared, sign_of

    found = compared(store, tensor, cursor, value)
    if found is None:
        absent = np.full(value.shape, np.nan, np.float32)
        return Shown(absent, _why_absent(store.trace, cursor))
    picked = {
        View.RECOMPUTED: found.other,
        View.ABSOLUTE: found.absolute,
        View.RELATIVE: found.relative,
    }[cursor.view]
    return Shown(picked, comparison=found, sign=sign_of(found.verdict))


def _kept(trace: Trace, tensor: Tensor, cursor: Cursor) -> Shown:
    """What the cache holds after the step; always as values."""
    from kvtrace.analysis.rows.kept import kept

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


class Ranges:
    """The colour ranges of one trace, found once."""

    def __init__(self) -> None:
        self._store: RowStore | None = None
        self._high: dict[Hashable, float] = {}

    def shade(self, store: RowStore, tensor: Tensor, cursor: Cursor, seen: Shown) -> Shade:
        """How the values become colours.

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows are damaged.
        """
        if store is not self._store:
            self._store, self._high = store, {}
        if cursor.view.differs and seen.comparison is not None:
            own = Shade.of(seen.values, signed=False, kind=cursor.scale)
            return replace(own, high=max(own.high, _tolerated(seen.comparison, cursor.view)))
        if cursor.base != CACHED or cursor.kept:
            return Shade.of(seen.values, signed=True, kind=cursor.scale)
        if tensor in CACHE_TENSORS:
            high = self._of_cells(store, tensor, cursor, seen)
        else:
            own = Shade.of(seen.values, signed=True, kind=cursor.scale)
            high = max(own.high, self._of_first(store, tensor, cursor))
        return Shade(True, high, cursor.scale)

    def _of_cells(self, store: RowStore, tensor: Tensor, cursor: Cursor, seen: Shown) -> float:
        """Of the K or V cells around those of the step."""
        where = cursor.layer, tensor, cursor.head
        found = store.around(cursor.step, *where, cursor.sequence)
        if found is None:
            return Shade.of(seen.values, signed=True, kind=cursor.scale).high
        blocks, rows = found
        return self._once((where, cursor.scale, blocks), lambda: rows, cursor.scale)

    def _of_first(self, store: RowStore, tensor: Tensor, cursor: Cursor) -> float:
        """Of the first step's rows, mostly the prompt's; 0 where it has none, or very many."""
        where = cursor.layer, tensor, cursor.head, cursor.sequence

        def rows() -> Floats | None:
            first = store.trace.numbers[0]
            try:
                step = store.trace.step(first)
                few = step.new_at(cursor.layer) <= LOOK_AHEAD
                if few and cursor.sequence < step.num_sequences:
                    return store.head(first, *where)
            except TraceError:
                pass  # told where that step is shown
            return None

        return self._once((where, cursor.scale), rows, cursor.scale)

    def _once(self, key: Hashable, rows: Callable[[], Floats | None], scale: ColourScale) -> float:
        if key not in self._high:
            found = rows()
            none = found is None or not found.size
            high = 0.0 if found is None or none else Shade.of(found, signed=True, kind=scale).high
            self._high[key] = high
        return self._high[key]


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
    left_out = any(note.text == f"{cursor.lane} {ROWS_LEFT_OUT}" for note in trace.notes)
    return f"{why} (record with --keep-rows for both)" if left_out else why
