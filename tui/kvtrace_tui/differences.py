"""The cursor on a place where two lanes differ. Pure."""

from __future__ import annotations

from dataclasses import replace

from kvtrace.analysis.parting import Place
from kvtrace.trace import Trace
from kvtrace_tui import moves
from kvtrace_tui.cursor import Cursor, View


def show(cursor: Cursor, trace: Trace, place: Place) -> Cursor:
    """The cursor on that difference, with the difference in view."""
    moved = replace(
        moves.to_step(cursor, trace, place.step),
        layer=place.layer,
        head=place.query_head,
        sequence=place.sequence,
        dim=place.dim,
        view=cursor.view if cursor.view.differs else View.ABSOLUTE,
    )
    at = replace(moved, query=place.new_row) if place.row is None else replace(moved, row=place.row)
    return moves.clamp(at, trace)
