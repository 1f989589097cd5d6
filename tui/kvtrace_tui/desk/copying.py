"""The number under the crosshair, to take along: as it is shown, and as Python that reads it.

Pure; knows nothing of keys or clipboards.
"""

from __future__ import annotations

from kvtrace.analysis.heads.tensors import CACHE_TENSORS, head_rows
from kvtrace.errors import UsageError
from kvtrace.trace import CACHED, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import Cursor, View


def value_at(cursor: Cursor, trace: Trace, tensor: Tensor) -> float:
    """The number: of a lane, or the difference of two, whichever is shown.

    Raises:
        KvtraceError: It is not in the trace.
    """
    _refuse_kept(cursor, tensor)
    value = _number(cursor, trace, tensor, cursor.base)
    if cursor.view is View.VALUE:
        return value
    other = _number(cursor, trace, tensor, cursor.lane)
    if cursor.view is View.RECOMPUTED:
        return other
    from kvtrace.analysis.lanes.compare import compare_rows  # not needed for the first picture

    both = compare_rows(
        _rows(cursor, trace, tensor, cursor.base), _rows(cursor, trace, tensor, cursor.lane), 0.0
    )
    apart = both.absolute if cursor.view is View.ABSOLUTE else both.relative
    return float(apart[_row(cursor, tensor), cursor.dim])


def expression(cursor: Cursor, trace: Trace, tensor: Tensor) -> str:
    """What to type to get the same number.

    Raises:
        UsageError: No line of Python gives it.
    """
    _refuse_kept(cursor, tensor)
    if cursor.view is View.RELATIVE:
        raise UsageError("no line of Python divides by a head's largest number: press d first.")
    value, other = (_read(cursor, trace, tensor, lane) for lane in (cursor.base, cursor.lane))
    if cursor.view is View.ABSOLUTE:
        return f"abs({value} - {other})"
    return value if cursor.view is View.VALUE else other


def weight_at(cursor: Cursor, trace: Trace) -> float:
    """The attention weight on the crosshair's row.

    Raises:
        KvtraceError: It is not in the trace.
    """
    where = cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.query
    found = trace.weights(*where).weights[0, 0]
    if cursor.row >= found.size:
        raise UsageError(f"weights: no row {cursor.row}.")
    return float(found[cursor.row])


def weight_expression(cursor: Cursor, trace: Trace) -> str:
    """What to type to get the same weight."""
    where = f"{cursor.step}, {cursor.layer}, {cursor.head}, {cursor.sequence}, {cursor.query}"
    return f"kvtrace.open({trace.name!r}).weights({where}).weights[0, 0, {cursor.row}]"


def _read(cursor: Cursor, trace: Trace, tensor: Tensor, lane: str) -> str:
    """Python for the number of one lane."""
    opened = f"kvtrace.open({trace.name!r})"
    where = f"{cursor.step}, {cursor.layer}" + (f", {cursor.sequence}" if cursor.sequence else "")
    beside = "" if lane == CACHED else f", lane={lane!r}"
    if tensor in CACHE_TENSORS:
        kv_head = trace.site(cursor.layer).kv_head(cursor.head)
        name = tensor.name.lower()
        return f"{opened}.cache({where}{beside}).{name}[{kv_head}, {cursor.row}, {cursor.dim}]"
    at = f"[{cursor.head}, {cursor.query}, {cursor.dim}]"
    if lane == CACHED:
        name = "queries" if tensor is Tensor.QUERIES else "output"
        return f"{opened}.{name}({where}){at}"
    where = f"{cursor.step}, {cursor.layer}, kvtrace.trace.Tensor.{tensor.name}"
    where += f", {cursor.sequence}" if cursor.sequence else ""
    return f"{opened}.rows({where}{beside}){at}"


def _number(cursor: Cursor, trace: Trace, tensor: Tensor, lane: str) -> float:
    rows, row = _rows(cursor, trace, tensor, lane), _row(cursor, tensor)
    if row >= rows.shape[0] or cursor.dim >= rows.shape[1]:
        raise UsageError(f"{tensor.name.lower()}: no value at row {row}, dim {cursor.dim}.")
    return float(rows[row, cursor.dim])


def _rows(cursor: Cursor, trace: Trace, tensor: Tensor, lane: str) -> Floats:
    """The rows of the cursor's head in a lane."""
    where = cursor.step, cursor.layer, tensor, cursor.head, cursor.sequence
    rows = head_rows(trace, *where, lane)
    if rows is None:
        raise UsageError(f"{tensor.name.lower()}: not recorded in the {lane} lane.")
    return rows


def _row(cursor: Cursor, tensor: Tensor) -> int:
    return cursor.row if tensor in CACHE_TENSORS else cursor.query


def _refuse_kept(cursor: Cursor, tensor: Tensor) -> None:
    if cursor.kept and tensor in CACHE_TENSORS:
        raise UsageError("only what was attended to can be copied: press a first.")
