"""One head's rows in both lanes, kept between frames, and the sign that says whether they agree.

Loaded when something looks at differences, which the first picture does not.
"""

from __future__ import annotations

from kvtrace.analysis.lanes.compare import Comparison, Verdict, compare_rows, tolerance_of
from kvtrace.trace import Tensor
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.panes.rows import RowStore

_SIGNS = {Verdict.SUSPICIOUS: "?", Verdict.BUG: "✗", Verdict.NOT_FINITE: "✗"}


def sign_of(verdict: Verdict) -> str:
    """One character that says whether lanes agree."""
    return _SIGNS.get(verdict, "✓")


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
