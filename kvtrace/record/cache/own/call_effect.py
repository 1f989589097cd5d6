"""What a call did to rows of a cache of the model's own, in cells, runs and positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from torch import Tensor

from kvtrace.record.cache import handed, runs
from kvtrace.record.cache.books import Entry
from kvtrace.record.cache.own.seen_call import SeenCall
from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.slots import Numbers
from kvtrace.record.flow.rows.standing import for_none
from kvtrace.trace.step import Runs
from kvtrace.trace.view import positions_of


class CallEffect(Struct, frozen=True, eq=False):
    """What a call did to rows of its own.

    Attributes:
        store: Its cache layer.
        entry: One step of it.
        rows: Keys and values written.
        slots: Slots that hold rows, where a buffer has more; None: all.
        cached: They are kept from step to step.
        seen: All that is known of the call.
    """

    store: int
    entry: Entry
    rows: tuple[Tensor, Tensor]
    slots: np.ndarray | None
    cached: bool
    seen: SeenCall


class Line(Struct, frozen=True):
    """Cache layers of which the last step said one and the same, and nothing new.

    Attributes:
        stores: They, one a call.
        row_bytes: Of a row in all of those that hold no more than their rows.
        buffer_bytes: Memory of the others.
        room: Rows that the smallest of those has room for; None: there are none.
    """

    stores: tuple[int, ...]
    row_bytes: int
    buffer_bytes: int
    room: int | None


def told_places(seen: SeenCall, origin: Entry, update: CacheUpdate) -> Sequence[Numbers]:
    """Position of each row as the cache layer that it was made from says it, per sequence."""
    slots = seen.step.slots
    if all(runs.count(one) == len(slots) for one in origin.attended):
        return [positions_of(one) for one in origin.attended]
    return [one[slots] for one in handed.among(seen.digests, update, origin.attended)]


def rows_for_none(step: RowStep, told: Sequence[Numbers]) -> int:
    """Rows that the first sequence wrote and that stand for no single token."""
    if not step.rows:
        return 0
    written = step.written[0]
    places = told[0][np.isin(step.slots, written)] if told else step.positions[0, written]
    return int(for_none(places).sum())


def attended_runs(step: RowStep, b: int, told: Sequence[Numbers]) -> Runs:
    """What a sequence attended to."""
    slots = step.slots
    positions = told[b] if b < len(told) else step.positions[b, slots]
    return runs.stretches(step.cells[b, slots], slots, positions)
