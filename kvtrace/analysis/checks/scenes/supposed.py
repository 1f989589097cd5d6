"""The place in the reference that each attended row is supposed to hold.

A row is known by its position; where the caller numbered positions otherwise (from 0 again, one of
them twice), by the step that wrote it and the token it came in with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import CacheView, Reference, Step, Trace

TAKEN_BACK = -2
"""Place of a row whose token was taken back since: a rejected draft, another branch."""

FILLING = -3
"""Place of a row that filled up a sequence of a prompt shorter than others of its batch."""

_STEPS = 4096
"""Steps that are walked back."""

_FAR = 1 << 40

Where = tuple[int, int, str]
"""Site, sequence, lane."""


def supposed_places(trace: Trace, step: Step, where: Where, view: CacheView) -> NDArray[np.int64]:
    """Place of each attended row, [seq]; -1: none, or why its token is no more.

    Args:
        trace: Whose step.
        step: It; the lane has a reference for it.
        where: Site, sequence of the batch, lane.
        view: What the site attended to.
    """
    site, sequence, lane = where
    reference = trace.reference(step.number, sequence, lane)
    if reference is None:
        return np.full(len(view.cells), -1, np.int64)
    reference = reference.leading(site)
    found = reference.places_of(view.positions)
    own = _own_cells(trace, step, where)
    if not _renumbered(step, sequence, reference, view, own):
        return found
    known = dict(_written(trace, step, where))
    cells = view.cells.tolist()
    places = np.array([known.get(cell, -1) for cell in cells], np.int64)
    told = (places < -1) | (places >= 0) & (places < reference.places)
    return np.where(told, places, found)


def _renumbered(
    step: Step, sequence: int, reference: Reference, view: CacheView, own: range
) -> bool:
    """Whether positions of the run can't be those of the lane: other ones, or one of them twice.

    Those of a layer's new rows, too, where it holds more rows before them than other layers do.
    """
    mine, right = list(step.positions[sequence]), reference.positions[reference.first :].tolist()
    if mine != right:
        return True
    live = view.positions[view.positions >= 0]
    new = view.positions[np.isin(view.cells, np.array(own, np.int64))].tolist()
    return len(np.unique(live)) < len(live) or not set(new) <= set(right)


def _own_cells(trace: Trace, step: Step, where: Where) -> range:
    """Cells that a step wrote for its tokens, in their order; none where it wrote others."""
    layer, sequence, _ = where
    group = step.cache_step(trace.site(layer).reads)
    if group is None or group.rows != step.new or group.rewritten:
        return range(0)
    first = group.first_cell + sequence * group.rows
    return range(first, first + group.rows)


def _written(trace: Trace, step: Step, where: Where) -> list[tuple[int, int]]:
    """(cell, place) of what a step and those before it wrote, one row a token."""
    layer, sequence, lane = where
    out, known, end, apart = list[tuple[int, int]](), set(trace.numbers), _FAR, False
    for _ in range(_STEPS):
        reference = trace.reference(step.number, sequence, lane)
        if reference is not None:
            reference = reference.leading(layer)
            places = range(reference.first, reference.places)
            cells = _own_cells(trace, step, (layer, sequence, lane))
            pairs = zip(cells, places, strict=False)
            gone = FILLING if apart and step.parent is None else TAKEN_BACK
            out += [(cell, n if n < end else gone) for cell, n in pairs]
            end = min(end, reference.first)
        if step.parent is None or step.parent not in known:
            break
        sequence = step.order[sequence] if sequence < len(step.order) else sequence
        apart = len({row[0] for row in step.positions if row}) > 1
        step = trace.step(step.parent)
        if sequence >= step.num_sequences:
            break
    return out
