"""Sets a scene: reads one step of one layer and sequence from a trace, both lanes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.asked import Asked, keys_and_values
from kvtrace.analysis.checks.scenes.changed import changed_rows
from kvtrace.analysis.checks.scenes.cross import stage_cross
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.scenes.scene import Scales, Scene, Side
from kvtrace.analysis.checks.scenes.supposed import supposed_places
from kvtrace.trace import CacheView, Reference, Site, Step, Tensor, Trace
from kvtrace.trace.weights import derive, mix


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
    own = _own(trace, reference, same)
    reference = reference.leading(own)
    theirs = _reference_side(reference, same, own)
    if theirs is None:
        return None
    view = trace.cache(number, layer, sequence)
    mine = _cached_side(trace, number, layer, sequence, view)
    changed, lost, half = changed_rows(trace, number, layer, sequence, view)
    supposed = supposed_places(trace, step, (layer, sequence, lane), view)
    asked = Asked(trace, reference, step, lane, (layer, sequence), (same, own))
    return Scene(
        step=number,
        layer=layer,
        sequence=sequence,
        site=site,
        first_step=reference.first == 0,
        cached=mine,
        reference=theirs,
        places=np.arange(reference.first, reference.places),
        supposed=supposed,
        slots=view.slots,
        changed=changed,
        padding=int((reference.positions < 0).sum()),
        front=reference.led,
        atol=Scales.of(theirs, tolerance),
        weights=asked.weights,
        layer_rows=asked.layer_rows,
        sequence_rows=asked.sequence_rows,
        layers=len(trace.meta.sites),
        sequences=step.num_sequences + _sequences_before(trace, step),
        current=step.num_sequences,
        first_site=_comes_first(trace, number, layer),
        lost=frozenset(reference.places_of(np.array(sorted(lost), np.int64)).tolist()),
        told=_told(step, sequence, reference),
        held=view.positions,
        cropped=any(event.kind == "crop" for event in step.events),
        paddings=asked.paddings,
        spoken=lambda other: spoken(trace.meta, other),
        biases=asked.biases,
        made=lambda: asked.made_of(mine, supposed),
        half=half,
    )


def _cached_side(trace: Trace, number: int, layer: int, sequence: int, view: CacheView) -> Side:
    visible = trace.visible(number, layer, sequence).any(axis=0)
    queries, output = (read(number, layer, sequence) for read in (trace.queries, trace.output))
    table = np.broadcast_to(visible, (trace.step(number).new, len(view.cells)))
    return Side(queries, view.keys, view.values, output, table)


def _sequences_before(trace: Trace, step: Step) -> int:
    """Sequences of the step before, where beams were reordered: any of them may be held now."""
    if step.parent is None or not any(event.order for event in step.events):
        return 0
    return trace.step(step.parent).num_sequences


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


def _own(trace: Trace, reference: Reference, layer: int) -> int:
    """The site whose keys and values are right here.

    A call that reads another layer's rows in some steps and wrote its own in others should read
    its own in all; one that never wrote any, those of which the lane's own output was made.
    """
    site, sites = trace.site(layer), trace.meta.sites

    def wrote(one: Site) -> bool:
        """Whether the lane has the rows of this very call under its cache."""
        first = next(other for other in sites if other.reads == one.reads)
        return (first.module, first.call) == (one.module, one.call)

    if wrote(site):
        return layer
    same = [
        one
        for one in sites
        if (one.module, one.call, one.kind) == (site.module, site.call, site.kind)
        and (one.num_kv_heads, one.key_dim) == (site.num_kv_heads, site.key_dim)
    ]
    written = next((one for one in same if wrote(one)), None)
    if written is not None:
        return written.index
    if len({one.reads for one in same}) == 1:
        return layer
    errors = {one.index: _unproved(trace, reference, layer, one.index) for one in same}
    return min(errors, key=errors.__getitem__)


def _unproved(trace: Trace, reference: Reference, layer: int, own: int) -> float:
    """How far the lane's output at a site is from what its weights make of other rows."""
    side, led = _reference_side(reference.leading(own), layer, own), reference.leading(own)
    visible = led.visible(layer)
    if side is None or visible is None:
        return np.inf
    weights = derive(trace.site(layer), side.queries, side.keys, visible, led.bias(layer)).weights
    return float(np.abs(mix(weights, side.values) - side.output).max(initial=0))


def _comes_first(trace: Trace, number: int, layer: int) -> bool:
    """Whether nothing of this stack attends before it in the step."""
    site = trace.site(layer)
    others = (trace.site(one) for group in trace.step(number).sites for one in group.sites)
    earlier = (one for one in others if one.kind == "self" and one.layer == 0)
    first = min((one.index for one in earlier), default=layer)
    return site.kind == "self" and site.layer == 0 and first == layer


def _reference_side(reference: Reference, layer: int, own: int) -> Side | None:
    queries, output = reference.rows(layer, Tensor.QUERIES), reference.rows(layer, Tensor.OUTPUT)
    kv, visible = keys_and_values(reference, own), reference.visible(layer)
    if queries is None or output is None or kv is None or visible is None:
        return None
    new = slice(reference.first, reference.places)
    table = np.broadcast_to(visible.any(axis=0), (reference.new, reference.places))
    return Side(queries[:, new], kv[0], kv[1], output[:, new], table)
