"""From one cursor to the next: pure transitions, kept inside the trace.

Every function takes a cursor and the trace and returns a cursor that is valid for it; a move past
an end stays at the end. Knows nothing of keys or Textual.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

from msgspec.structs import replace

from kvtrace.errors import KvtraceError
from kvtrace.trace import CACHED, CacheStep, Trace
from kvtrace_tui.desk.cursor import Axis, ColourScale, Cursor, View

MAX_ZOOM = 12


def start(trace: Trace, step: int | None = None) -> Cursor:
    """The first cursor: the first decode step if there is one, its newest row and last query.

    Args:
        trace: The trace; may be empty.
        step: Where to start instead.
    """
    numbers = trace.numbers
    if not numbers:
        return Cursor()
    first = numbers[min(1, len(numbers) - 1)]
    lane = trace.meta.lanes[0].name if trace.meta.lanes else "recomputed"
    number = first if step is None else nearest(trace, step)
    last_query = max(_step_shape(trace, number)[1] - 1, 0)
    at = Cursor(step=number, layer=_attending(trace, number), query=last_query, lane=lane)
    cursor = clamp(at, trace)
    return replace(cursor, row=max(row_count(cursor, trace) - 1, 0))


def nearest(trace: Trace, number: int) -> int:
    """The recorded step closest to a number; the earlier one when two are as close."""
    numbers = trace.numbers
    at = bisect_left(numbers, number)
    around = numbers[max(at - 1, 0) : at + 1]
    return min(around, key=lambda found: abs(found - number), default=0)


def cache_step(cursor: Cursor, trace: Trace) -> CacheStep | None:
    """What the step did to the rows that the layer reads; None if it did not attend."""
    try:
        return trace.cache_step(cursor.step, cursor.layer)
    except KvtraceError:
        return None


def row_count(cursor: Cursor, trace: Trace) -> int:
    """Rows the layer was given in the step; 0 if it did not attend."""
    found = cache_step(cursor, trace)
    if found is None or cursor.sequence >= len(found.attended):
        return 0
    return sum(run.count for run in found.attended[cursor.sequence])


def cell_at(cursor: Cursor, trace: Trace) -> int | None:
    """The cell under the crosshair, which stays the same row for ever; None without one."""
    found = cache_step(cursor, trace)
    row = cursor.row
    runs = () if found is None else found.attended[min(cursor.sequence, len(found.attended) - 1)]
    for run in runs:
        if row < run.count:
            return run.cell + row
        row -= run.count
    return None


def row_of_cell(cursor: Cursor, trace: Trace, cell: int) -> int | None:
    """Where a cell stands among the rows the layer was given; None if it is not there."""
    found = cache_step(cursor, trace)
    if found is None or cursor.sequence >= len(found.attended):
        return None
    before = 0
    for run in found.attended[cursor.sequence]:
        if run.cell <= cell < run.cell + run.count:
            return before + cell - run.cell
        before += run.count
    return None


def clamp(cursor: Cursor, trace: Trace) -> Cursor:
    """The same place, or the closest one that exists."""
    sites = trace.meta.sites
    if not trace.numbers or not sites:
        return replace(cursor, layer=0, head=0, sequence=0, query=0, row=0, dim=0)
    layer = _within(cursor.layer, len(sites))
    number = nearest(trace, cursor.step)
    step = _step_shape(trace, number)
    site = sites[layer]
    moved = replace(
        cursor,
        step=number,
        layer=layer,
        head=_within(cursor.head, site.num_heads),
        sequence=_within(cursor.sequence, step[0]),
        query=_within(cursor.query, step[1]),
        dim=_within(cursor.dim, max(site.key_dim, site.value_dim)),
    )
    return replace(moved, row=_within(moved.row, row_count(moved, trace)))


def to_step(cursor: Cursor, trace: Trace, number: int) -> Cursor:
    """Go to the recorded step closest to a number; the crosshair stays on its row.

    The chosen query becomes the step's last one: the one that decides the next token.
    """
    target = nearest(trace, number)
    if target == cursor.step:
        return clamp(replace(cursor, inside=False), trace)
    last_query = _step_shape(trace, target)[1] - 1
    moved = replace(cursor, step=target, query=max(last_query, 0), inside=False)
    return _keep_cell(cursor, clamp(moved, trace), trace)


def to_newest(cursor: Cursor, trace: Trace) -> Cursor:
    """Follow a growing trace; an encoder's layer is left when the encoder has read."""
    moved = to_step(cursor, trace, trace.numbers[-1])
    if not trace.meta.sites or trace.site(moved.layer).kind != "encoder":
        return moved
    if cache_step(cursor, trace) is None or cache_step(moved, trace) is not None:
        return moved
    there = clamp(replace(moved, layer=_attending(trace, moved.step)), trace)
    return replace(there, row=max(row_count(there, trace) - 1, 0))


def by_steps(cursor: Cursor, trace: Trace, by: int) -> Cursor:
    """Go some recorded steps on or back; steps lost to damage are passed over."""
    numbers = trace.numbers
    if not numbers:
        return cursor
    at = bisect_right(numbers, cursor.step) - 1
    return to_step(cursor, trace, numbers[_within(at + by, len(numbers))])


def by_layers(cursor: Cursor, trace: Trace, by: int) -> Cursor:
    """Go some sites down or up."""
    moved = clamp(replace(cursor, layer=max(cursor.layer + by, 0)), trace)
    return _keep_cell(cursor, moved, trace) if _same_cells(cursor, moved, trace) else moved


def walk(cursor: Cursor, trace: Trace, by: int) -> Cursor:
    """Go layer by layer inside a step, and on into the next or the previous step.

    Layers that did not attend in it are passed over, as those of an encoder that ran before.
    """
    layers = _attended(trace, cursor.step)
    ahead = [at for at in layers if not cursor.inside or (at - cursor.layer) * by > 0]
    moved = cursor
    if not ahead:
        moved = by_steps(cursor, trace, by)
        if moved.step == cursor.step:
            return replace(cursor, inside=True)
        ahead = _attended(trace, moved.step)
    layer = min(ahead) if by > 0 else max(ahead)
    return replace(by_layers(moved, trace, layer - moved.layer), inside=True)


def _attended(trace: Trace, number: int) -> list[int]:
    """The sites that attended in a step; all of them where it can't be told."""
    every = list(range(len(trace.meta.sites)))
    try:
        step = trace.step(number)
    except KvtraceError:
        return every or [0]
    return sorted(step.attending) or every or [0]


def along(cursor: Cursor, trace: Trace, axis: Axis, by: int) -> Cursor:
    """Move along one axis."""
    if axis is Axis.STEP:
        return by_steps(cursor, trace, by)
    if axis is Axis.LAYER:
        return by_layers(cursor, trace, by)
    return at(cursor, trace, axis, getattr(cursor, axis) + by)


def at(cursor: Cursor, trace: Trace, axis: Axis, index: int) -> Cursor:
    """Go to an index of one axis."""
    if axis is Axis.STEP:
        return to_step(cursor, trace, index)
    if axis is Axis.LAYER:
        return by_layers(cursor, trace, index - cursor.layer)
    places: dict[str, Any] = {axis.value: max(index, 0)}
    return clamp(replace(cursor, **places), trace)


def again(before: Cursor, now: Cursor, trace: Trace) -> Cursor | None:
    """Where the move from `before` to `now` leads when it is made once more.

    None: that was no move along one axis, or it leads no further.
    """
    axis = next((one for one in Axis if getattr(before, one) != getattr(now, one)), None)
    if axis is None:
        return None
    by = getattr(now, axis) - getattr(before, axis)
    if axis is Axis.STEP:
        by = 1 if by > 0 else -1  # numbers of steps may be apart
    if along(before, trace, axis, by) != now:
        return None
    further = along(now, trace, axis, by)
    return None if further == now else further


def next_view(cursor: Cursor) -> Cursor:
    """Value → recomputed → absolute → relative → value."""
    order = list(View)
    return replace(cursor, view=order[(order.index(cursor.view) + 1) % len(order)])


def pairs(trace: Trace) -> list[tuple[str, str]]:
    """Lanes that can be held against each other: what is shown, and against what."""
    others = [lane.name for lane in trace.meta.lanes]
    return [
        *((CACHED, other) for other in others),
        *((one, other) for at, one in enumerate(others) for other in others[at + 1 :]),
    ]


def next_pair(cursor: Cursor, trace: Trace) -> Cursor:
    """The next pair of lanes, with their difference in view."""
    known = pairs(trace)
    if not known:
        return cursor
    now = (cursor.base, cursor.lane)
    at = (known.index(now) + 1) % len(known) if now in known else 0
    view = cursor.view if cursor.view.differs else View.ABSOLUTE
    return replace(cursor, base=known[at][0], lane=known[at][1], view=view)


def next_palette(cursor: Cursor, count: int) -> Cursor:
    """The next of `count` palettes."""
    return replace(cursor, palette=(cursor.palette + 1) % count)


def next_scale(cursor: Cursor) -> Cursor:
    """Lin → log → percentile → lin."""
    order = list(ColourScale)
    return replace(cursor, scale=order[(order.index(cursor.scale) + 1) % len(order)])


def zoomed(cursor: Cursor, by: int) -> Cursor:
    """Enlarge or shrink maps; 0 fits all."""
    return replace(cursor, zoom=min(max(cursor.zoom + by, 0), MAX_ZOOM))


def _attending(trace: Trace, number: int) -> int:
    """The first layer that attended in a step; an encoder's have not, once it was read."""
    sites = range(len(trace.meta.sites))
    at = (layer for layer in sites if cache_step(Cursor(step=number, layer=layer), trace))
    return next(at, 0)


def _within(index: int, count: int) -> int:
    return min(max(index, 0), max(count - 1, 0))


def _step_shape(trace: Trace, number: int) -> tuple[int, int]:
    """Sequences and new rows of a step; (1, 1) if it can't be read."""
    try:
        step = trace.step(number)
    except KvtraceError:
        return 1, 1
    return step.num_sequences, step.new


def _same_cells(cursor: Cursor, moved: Cursor, trace: Trace) -> bool:
    """Whether both layers number their cells alike: they were written by the same steps."""
    before, after = cache_step(cursor, trace), cache_step(moved, trace)
    return before is not None and before == after


def _keep_cell(before: Cursor, after: Cursor, trace: Trace) -> Cursor:
    """Put the crosshair on the cell it was on, where that is still there."""
    cell = cell_at(before, trace)
    row = None if cell is None else row_of_cell(after, trace, cell)
    return after if row is None else replace(after, row=row)
