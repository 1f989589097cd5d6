"""The cursor on a place where two lanes differ, or on what a finding speaks of. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.heads.tensors import CACHE_TENSORS
from kvtrace.analysis.lanes.compare import Comparison, compare, head_verdicts
from kvtrace.analysis.rows.origin import attended_rows
from kvtrace.errors import KvtraceError
from kvtrace.trace import CACHED, Tensor, Trace
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import Cursor, View
from kvtrace_tui.found import Found

if TYPE_CHECKING:
    from kvtrace.analysis.lanes.parting import Place

TENSORS = {
    "q": Tensor.QUERIES, "k": Tensor.KEYS, "v": Tensor.VALUES, "output": Tensor.OUTPUT,
}  # fmt: skip


def show(cursor: Cursor, trace: Trace, place: Place) -> Cursor:
    """The cursor on that difference, with the difference in view."""
    moved = replace(
        moves.to_step(cursor, trace, place.step),
        layer=place.layer,
        head=place.query_head,
        sequence=place.sequence,
        dim=place.dim,
        kept=False,
        view=cursor.view if cursor.view.differs else View.ABSOLUTE,
    )
    at = replace(moved, query=place.new_row) if place.row is None else replace(moved, row=place.row)
    return moves.clamp(at, trace)


def show_found(cursor: Cursor, trace: Trace, found: Found) -> Cursor:
    """The cursor on the row that a finding speaks of, with the difference in view.

    What the finding does not say is where the lanes differ most: the head, the row, the feature.
    """
    if found.step is None:
        return cursor
    moved = replace(moves.to_step(cursor, trace, found.step), base=CACHED, kept=False)
    if found.layer is None:
        return moved
    tensor = TENSORS.get(found.tensor)
    moved = moves.clamp(replace(moved, layer=found.layer, sequence=found.sequence), trace)
    moved = moves.clamp(replace(moved, head=_query_head(moved, trace, found, tensor)), trace)
    row = _row(moved, trace, found)
    if tensor is None:
        # of masks, weights and logits the row in question is a query
        return moved if row is None else moves.clamp(replace(moved, query=row), trace)
    cached = tensor in CACHE_TENSORS
    compared = _compared(moved, trace, tensor)
    if compared is not None:
        row = compared.row if row is None else min(row, len(compared.absolute) - 1)
        apart = np.nan_to_num(compared.absolute[row], nan=-1.0, posinf=np.inf)
        moved = replace(moved, dim=int(apart.argmax()))
        moved = replace(moved, view=moved.view if moved.view.differs else View.ABSOLUTE)
    if row is not None:
        moved = replace(moved, row=row) if cached else replace(moved, query=row)
    return moves.clamp(moved, trace)


def _query_head(cursor: Cursor, trace: Trace, found: Found, tensor: Tensor | None) -> int:
    """The first query head that reads the head in question."""
    site = trace.site(cursor.layer)
    head = found.head
    if head is None and tensor is not None:
        relative = head_verdicts(trace, cursor.step, cursor.lane)
        if relative is not None:
            heads = relative[cursor.layer, tensor][: site.heads(tensor)]
            head = int(np.nan_to_num(heads, nan=-1.0, posinf=np.inf).argmax())
    if head is None:
        return cursor.head
    return head * (site.num_heads // site.num_kv_heads) if tensor in CACHE_TENSORS else head


def _row(cursor: Cursor, trace: Trace, found: Found) -> int | None:
    """The row in question, found by its slot where only that is known."""
    if found.row is not None or found.slot is None:
        return found.row
    try:
        slots = attended_rows(trace, cursor.step, cursor.layer, cursor.sequence).slots
    except KvtraceError:
        return None
    at = np.flatnonzero(slots == found.slot)
    return int(at[0]) if at.size else None


def _compared(cursor: Cursor, trace: Trace, tensor: Tensor) -> Comparison | None:
    """The head in both lanes; None where there is nothing to compare."""
    where = cursor.step, cursor.layer, tensor, cursor.head, cursor.sequence
    try:
        found = compare(trace, *where, cursor.lane)
    except KvtraceError:
        return None
    return None if found is None or found.row < 0 else found
