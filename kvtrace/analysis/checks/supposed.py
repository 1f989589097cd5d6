"""The place in the reference that each attended row is supposed to hold.

A row is known by its position; where the caller numbered positions otherwise (from 0 again, one of
them twice), by the step that wrote it and the token it came in with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import CacheView, Reference, Step, Trace

_STEPS = 4096
"""Steps that are walked back."""

Where = tuple[int, int, str]
"""Site, sequence, lane."""


def supposed_places(trace: Trace, step: Step, where: Where, view: CacheView) -> NDArray[np.int64]:
    """Place of each attended row, [seq]; -1: none.

    Args:
        trace: Whose step.
        step: It; the lane has a reference for it.
        where: Site, sequence of the batch, lane.
        view: What the site attended to.
    """
    _, sequence, lane = where
    reference = trace.reference(step.number, sequence, lane)
    if reference is None:
        return np.full(len(view.cells), -1, np.int64)
    found = reference.places_of(view.positions)
    if not _renumbered(step, sequence, reference, view):
        return found
    known = dict(_written(trace, step, where))
    cells = view.cells.tolist()
    places = np.array([known.get(cell, -1) for cell in cells], np.int64)
    return np.where((places >= 0) & (places < reference.places), places, found)


def _renumbered(step: Step, sequence: int, reference: Reference, view: CacheView) -> bool:
    """Whether positions of the run can't be those of the lane: other ones, or one of them twice."""
    mine = list(step.positions[sequence])
    if mine != reference.positions[reference.first :].tolist():
        return True
    live = view.positions[view.positions >= 0]
    return len(np.unique(live)) < len(live)


def _written(trace: Trace, step: Step, where: Where) -> list[tuple[int, int]]:
    """(cell, place) of what a step and those before it wrote, one row a token."""
    layer, sequence, lane = where
    store, out, known = trace.site(layer).reads, list[tuple[int, int]](), set(trace.numbers)
    for _ in range(_STEPS):
        reference = trace.reference(step.number, sequence, lane)
        group = step.cache_step(store)
        whole = group is not None and group.rows == step.new and not group.rewritten
        if reference is not None and group is not None and whole:
            first = group.first_cell + sequence * group.rows
            out += [(first + row, reference.first + row) for row in range(group.rows)]
        if step.parent is None or step.parent not in known:
            break
        sequence = step.order[sequence] if sequence < len(step.order) else sequence
        step = trace.step(step.parent)
        if sequence >= step.num_sequences:
            break
    return out
