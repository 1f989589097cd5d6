"""Sets a scene: reads one step of one layer and sequence from a trace, both lanes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.cross import stage_cross
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.scenes.scene import Scales, Scene, Side
from kvtrace.analysis.checks.scenes.supposed import supposed_places
from kvtrace.errors import MissingError, TraceError
from kvtrace.trace import CacheView, Reference, Site, Step, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.weights import derive


def stage(
    trace: Trace, number: int, layer: int, sequence: int, tolerance: float, lane: str
) -> Scene | None:
    """The scene of a step; None where the lane's rows were not kept.

    Args:
        trace: With passes of `lane`.
        number: Step.
        layer: Site.
        sequence: Row of the batch.
        tolerance: Relative difference that is rounding.
        lane: The reference.

    Raises:
        TraceError: Rows are damaged.
    """
    site, step = trace.site(layer), trace.step(number)
    if site.kind == "cross":
        return stage_cross(trace, number, layer, sequence, tolerance)
    reference = trace.reference(number, sequence, lane)
    if reference is None:
        return None
    same = _kept_as(trace, reference, layer)
    own = _own(trace, same)
    theirs = _reference_side(reference, same, own)
    if theirs is None:
        return None
    view = trace.cache(number, layer, sequence)
    visible = trace.visible(number, layer, sequence).any(axis=0)
    mine = Side(
        trace.queries(number, layer, sequence),
        view.keys,
        view.values,
        trace.output(number, layer, sequence),
        np.broadcast_to(visible, (trace.step(number).new, len(view.cells))),
    )
    positions = reference.positions
    changed, lost = _changed(trace, number, layer, sequence, view)

    beams = step.parent is not None and any(event.order for event in step.events)
    earlier = trace.step(step.parent).num_sequences if beams and step.parent is not None else 0

    def weights(row: int) -> Floats:
        return _weights(trace, reference, (same, own), row)

    def layer_rows(other: int) -> tuple[Floats, Floats] | None:
        return _kv(reference, other) if trace.site(other).kind == site.kind else None

    def sequence_rows(other: int) -> tuple[Floats, Floats] | None:
        before = other - step.num_sequences  # one of the step before, which may have ended there
        at = number if before < 0 or step.parent is None else step.parent
        there = trace.reference(at, other if before < 0 else before, lane)
        return None if there is None else _kv(there, own)

    def biases(row: int) -> tuple[Floats, Floats] | None:
        mine, right = trace.bias(number, layer, sequence), reference.bias(same)
        if mine is None or right is None:
            return None
        one, other = (bias[:, min(row, bias.shape[1] - 1)] for bias in (mine, right))
        return one, other

    return Scene(
        step=number,
        layer=layer,
        sequence=sequence,
        site=site,
        first_step=reference.first == 0,
        cached=mine,
        reference=theirs,
        places=np.arange(reference.first, reference.places),
        supposed=supposed_places(trace, step, (layer, sequence, lane), view),
        slots=view.slots,
        changed=changed,
        padding=int((positions < 0).sum()),
        atol=_scales(theirs, tolerance),
        weights=weights,
        layer_rows=layer_rows,
        sequence_rows=sequence_rows,
        layers=len(trace.meta.sites),
        sequences=step.num_sequences + earlier,
        current=step.num_sequences,
        first_site=_comes_first(trace, number, layer),
        lost=frozenset(reference.places_of(np.array(sorted(lost), np.int64)).tolist()),
        told=_told(step, sequence, reference),
        held=view.positions,
        cropped=any(event.kind == "crop" for event in step.events),
        paddings=lambda: _paddings(trace, step, lane),
        spoken=lambda other: spoken(trace.meta, other),
        biases=biases,
    )


def _paddings(trace: Trace, step: Step, lane: str) -> frozenset[int]:
    """Padding of all sequences of a step and of the one before."""
    steps = [step] if step.parent is None else [step, trace.step(step.parent)]
    each = (
        trace.reference(one.number, sequence, lane)
        for one in steps
        for sequence in range(one.num_sequences)
    )
    return frozenset(int((one.positions < 0).sum()) for one in each if one is not None)


def _told(step: Step, sequence: int, reference: Reference) -> NDArray[np.int64] | None:
    """Positions that the step gave its new rows, [new], where the lane has others."""
    mine = np.array(step.positions[sequence], np.int64)
    right = reference.positions[reference.first :]
    return None if mine.shape != right.shape or (mine == right).all() else mine


def _kept_as(trace: Trace, reference: Reference, layer: int) -> int:
    """The site whose rows the lane has: a call that is met in another shape is another site."""
    if reference.rows(layer, Tensor.QUERIES) is not None:
        return layer
    site = trace.site(layer)
    same = (
        one.index
        for one in trace.meta.sites
        if (one.module, one.call, one.kind) == (site.module, site.call, site.kind)
    )
    kept = (one for one in same if reference.rows(one, Tensor.QUERIES) is not None)
    return next(kept, layer)


def _own(trace: Trace, layer: int) -> int:
    """The site whose keys and values are right here.

    A call that reads another layer's rows in some steps and wrote its own in others should read
    its own in all.
    """
    site, sites = trace.site(layer), trace.meta.sites

    def wrote(one: Site) -> bool:
        """Whether the lane has the rows of this very call under its cache."""
        first = next(other for other in sites if other.reads == one.reads)
        return (first.module, first.call) == (one.module, one.call)

    if wrote(site):
        return layer
    same = (
        one.index
        for one in sites
        if (one.module, one.call, one.kind) == (site.module, site.call, site.kind)
        and (one.num_kv_heads, one.key_dim) == (site.num_kv_heads, site.key_dim)
        and wrote(one)
    )
    return next(same, layer)


def _comes_first(trace: Trace, number: int, layer: int) -> bool:
    """Whether nothing of this stack attends before it in the step."""
    site = trace.site(layer)
    others = (trace.site(one) for group in trace.step(number).sites for one in group.sites)
    earlier = (one for one in others if one.kind == "self" and one.layer == 0)
    first = min((one.index for one in earlier), default=layer)
    return site.kind == "self" and site.layer == 0 and first == layer


def _reference_side(reference: Reference, layer: int, own: int) -> Side | None:
    queries, output = reference.rows(layer, Tensor.QUERIES), reference.rows(layer, Tensor.OUTPUT)
    kv, visible = _kv(reference, own), reference.visible(layer)
    if queries is None or output is None or kv is None or visible is None:
        return None
    new = slice(reference.first, reference.places)
    table = np.broadcast_to(visible.any(axis=0), (reference.new, reference.places))
    return Side(queries[:, new], kv[0], kv[1], output[:, new], table)


def _kv(reference: Reference, layer: int) -> tuple[Floats, Floats] | None:
    keys, values = reference.rows(layer, Tensor.KEYS), reference.rows(layer, Tensor.VALUES)
    return None if keys is None or values is None else (keys, values)


def _weights(trace: Trace, reference: Reference, sites: tuple[int, int], row: int) -> Floats:
    """Reference weights of one new row, [heads, places]; the keys are those of the second site."""
    layer, own = sites
    queries, keys = reference.rows(layer, Tensor.QUERIES), reference.rows(own, Tensor.KEYS)
    visible, bias = reference.visible(layer), reference.bias(layer)
    if queries is None or keys is None or visible is None:
        raise MissingError(f"{trace.name}: the rows of the recomputed lane are not complete.")
    if bias is not None and bias.shape[1] > 1:
        bias = bias[:, row : row + 1]
    place = reference.first + row
    made = derive(
        trace.site(layer), queries[:, place : place + 1], keys, visible[:, row : row + 1], bias
    )
    return made.weights[:, 0]


def _changed(
    trace: Trace, number: int, layer: int, sequence: int, view: CacheView
) -> tuple[NDArray[np.bool_], set[int]]:
    """Rows that replaced another one in their slot since the step before; positions of those.

    A cell is the same row for ever; another cell may still hold the same numbers, where rows
    were recorded anew. Rows that only moved to another slot are not changed.
    """
    out, lost = np.zeros(len(view.cells), bool), set[int]()
    step = trace.step(number)
    if step.parent is None or any(event.kind != "crop" for event in step.events):
        return out, lost
    try:
        before = trace.cache(step.parent, layer, sequence)
    except (TraceError, IndexError):
        return out, lost
    if _shifted(view, before):
        return out, lost
    moved_up = _moved_up(view, before)
    held = {slot: row for row, slot in enumerate(before.slots.tolist())}
    there, earlier = set(view.cells.tolist()), set(before.cells.tolist())
    for row, (slot, cell) in enumerate(zip(view.slots.tolist(), view.cells.tolist(), strict=True)):
        old = held.get(slot)
        if old is None or cell in earlier or int(before.cells[old]) in there or slot > moved_up:
            continue
        out[row] = not _same(view, row, before, old)
        if out[row]:
            lost.add(int(before.positions[old]))
    return out, lost


def _shifted(view: CacheView, before: CacheView) -> bool:
    """Whether most rows that are still there stand in another slot: slots mean nothing then."""
    then = dict(zip(before.cells.tolist(), before.slots.tolist(), strict=True))
    now = zip(view.cells.tolist(), view.slots.tolist(), strict=True)
    moved = [int(then[cell]) != int(slot) for cell, slot in now if cell in then]
    return len(moved) < 2 * sum(moved)


def _moved_up(view: CacheView, before: CacheView) -> int:
    """The first slot whose row stood further behind: from there on rows were dropped, not replaced.

    The next slot after all of them where none did.
    """
    then = dict(zip(before.cells.tolist(), before.slots.tolist(), strict=True))
    now = zip(view.cells.tolist(), view.slots.tolist(), strict=True)
    up = (slot for cell, slot in now if cell in then and slot < then[cell])
    return int(min(up, default=max(view.slots.tolist(), default=0) + 1))


def _same(view: CacheView, row: int, before: CacheView, old: int) -> bool:
    """Whether two rows hold the same numbers."""
    pairs = ((view.keys, before.keys), (view.values, before.values))
    return all(np.array_equal(now[:, row], then[:, old], equal_nan=True) for now, then in pairs)


def _scales(side: Side, tolerance: float) -> Scales:
    """Absolute tolerances from the largest number of each reference tensor."""

    def atol(rows: Floats) -> float:
        finite = np.abs(rows[np.isfinite(rows)])
        return tolerance * float(finite.max(initial=0.0)) + 1e-12

    return Scales(atol(side.queries), atol(side.keys), atol(side.values), atol(side.output))
