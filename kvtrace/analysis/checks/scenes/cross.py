"""Sets a scene for attention to an encoder, whose rows never change.

The first step that read them is what every later one must be given. Says nothing of outputs, and
nothing of the first step; of queries, where those of a lane are laid beside them.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.scenes.scene import Scales, Scene, Side
from kvtrace.trace import CacheView, Reference, Site, Step, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.reference import places_of
from kvtrace.trace.weights import derive, mix

_SAME = 0.05
"""Of the largest number: what comes of the same rows is nearer than that, in narrow types too."""


def stage_cross(
    trace: Trace, number: int, layer: int, sequence: int, tolerance: float
) -> Scene | None:
    """The scene of a cross-attention; None in the first step that has one.

    Args:
        trace: Whose step.
        number: Step.
        layer: Site.
        sequence: Row of the batch.
        tolerance: Relative difference that is rounding.
    """
    step, site = trace.step(number), trace.site(layer)
    found = first_read(trace, step, site)
    if found is None:
        return None
    first, there = found
    base, view = trace.cache(first, there, sequence), trace.cache(number, layer, sequence)
    if base.keys.shape[::2] != view.keys.shape[::2]:
        return None
    before, now = _visible(trace, first, there, sequence), _visible(trace, number, layer, sequence)
    queries, output = (read(number, layer, sequence) for read in (trace.queries, trace.output))
    rows, size = queries.shape[1], len(base.cells)
    mine, right = _side(queries, view, output, now), _side(queries, base, output, before)

    def layer_rows(other: int) -> tuple[Floats, Floats] | None:
        attends = trace.site(other).kind == "cross" and trace.step(first).site_step(other)
        return _kv(trace.cache(first, other, sequence)) if attends else None

    def sequence_rows(other: int) -> tuple[Floats, Floats] | None:
        return _kv(trace.cache(first, there, other)) if other < step.num_sequences else None

    return Scene(
        step=number,
        layer=layer,
        sequence=sequence,
        site=site,
        first_step=False,
        cached=mine,
        reference=right,
        places=np.arange(size, size + rows),
        supposed=places_of(base.positions, view.positions),
        slots=view.slots,
        changed=np.zeros(len(view.cells), bool),
        atol=Scales.of(right, tolerance),
        weights=lambda row: np.zeros((site.num_heads, size), np.float32),
        layer_rows=layer_rows,
        sequence_rows=sequence_rows,
        layers=len(trace.meta.sites),
        sequences=step.num_sequences,
        spoken=lambda other: spoken(trace.meta, other),
    )


def beside_queries(trace: Trace, scene: Scene, lane: str) -> Scene | None:
    """The same scene with a lane's queries as the right ones; None: they are not known."""
    reference = trace.reference(scene.step, scene.sequence, lane)
    if reference is None:
        return None
    right = reference.new_rows(scene.layer, Tensor.QUERIES, None)
    if right is None or right.shape != scene.cached.queries.shape:
        return None
    return replace(
        scene,
        reference=replace(scene.reference, queries=right),
        places=np.arange(reference.first, reference.places),
        supposed=np.full_like(scene.supposed, -1),  # no row is one of the queries' own text
    )


def stale_cross(trace: Trace, number: int, layer: int) -> Finding | None:
    """Attention to an encoder in the first step of a text that computes none of its rows.

    Args:
        trace: Whose step.
        number: Step, whose lanes differ at the site.
        layer: Site.
    """
    step, site = trace.step(number), trace.site(layer)
    group = step.cache_step(site.reads)
    if site.kind != "cross" or group is None or group.rows or step.parent is None:
        return None
    own = {one.reads for one in trace.meta.sites if one.kind == "self"}
    begun = [one.length_before == 0 for one in step.caches if own & set(one.layers)]
    if not begun or not all(begun):
        return None
    evidence = (
        f"a new text begins here, but none of the {group.length_before} rows of the encoder were "
        "computed for it: they are those of the text before"
    )
    return Finding("STALE-CACHE", number, layer, "k", evidence, row=0)


def cross_of_other_layer(trace: Trace, number: int, layer: int, lane: str) -> Finding | None:
    """Attention to an encoder that is given the very rows that another layer's is.

    Args:
        trace: Whose step.
        number: Step, whose lanes differ at the site.
        layer: Site.
        lane: The reference. Where its output follows from those rows, they are shared on purpose.
    """
    if trace.site(layer).kind != "cross":
        return None
    mine = trace.cache(number, layer, 0)
    for other in trace.step(number).attending:
        if other == layer or trace.site(other).kind != "cross":
            continue
        theirs = trace.cache(number, other, 0)
        if np.array_equal(mine.keys, theirs.keys) and np.array_equal(mine.values, theirs.values):
            shared = _makes(trace.reference(number, 0, lane), trace.site(layer), mine)
            evidence = f"all {mine.keys.shape[1]} rows are those of {spoken(trace.meta, other)}"
            found = Finding("WRONG-LAYER", number, layer, "k", evidence, row=0)
            return None if shared is not False else found
    return None


def _makes(reference: Reference | None, site: Site, rows: CacheView) -> bool | None:
    """Whether the output of a lane is what its queries make of some rows; None: not known."""
    if reference is None:
        return None
    queries, output = (reference.rows(site.index, one) for one in (Tensor.QUERIES, Tensor.OUTPUT))
    seen, bias = reference.visible(site.index), reference.bias(site.index)
    if queries is None or output is None or seen is None or seen.shape[2] != rows.keys.shape[1]:
        return None
    made = mix(derive(site, queries, rows.keys, seen, bias).weights, rows.values)
    far = float(np.abs(made - output).max(initial=0.0))
    return far <= _SAME * float(np.abs(output).max(initial=0.0))


def of_earlier_text(trace: Trace, found: Finding) -> str | None:
    """In words, which text's rows a cross-attention reads, if an earlier one's; else None.

    Args:
        trace: Whose finding.
        found: About keys or values that match none of the right ones.
    """
    site, step = trace.site(found.layer), trace.step(found.step)
    first = first_read(trace, step, site) if site.kind == "cross" else None
    if first is None:
        return None
    sequence = found.sequences[0] if found.sequences else 0
    mine = trace.cache(step.number, site.index, sequence)
    for number in (one for one in trace.numbers if one < first[0]):
        there = _attended(trace, trace.step(number), site)
        if there is None or sequence >= trace.step(number).num_sequences:
            continue
        theirs = trace.cache(number, there, sequence)
        if np.array_equal(mine.keys, theirs.keys) and np.array_equal(mine.values, theirs.values):
            return f"they are the rows that step {number} attended to, in a text before"
    return None


def first_read(trace: Trace, step: Step, site: Site) -> tuple[int, int] | None:
    """(step, site) of the first ancestor in which the same call attended; rows as they are now."""
    found = None
    known, count = set(trace.numbers), step.num_sequences
    while step.parent is not None and step.parent in known:
        if any(event.order for event in step.events):
            return None
        step = trace.step(step.parent)
        if step.num_sequences != count:
            return None
        there = _attended(trace, step, site)
        if there is not None:
            found = step.number, there
    return found


def _attended(trace: Trace, step: Step, site: Site) -> int | None:
    """The site by which the same call attended in a step; None: it did not."""
    here = (trace.site(one) for group in step.sites for one in group.sites)
    same = (one.index for one in here if (one.module, one.call) == (site.module, site.call))
    return next(same, None)


def _kv(view: CacheView) -> tuple[Floats, Floats]:
    return view.keys, view.values


def _side(queries: Floats, view: CacheView, output: Floats, visible: NDArray[np.bool_]) -> Side:
    table = np.broadcast_to(visible, (queries.shape[1], visible.shape[1]))
    return Side(queries, view.keys, view.values, output, table)


def _visible(trace: Trace, number: int, layer: int, sequence: int) -> NDArray[np.bool_]:
    """Rows that any query sees in any head, [1, seq]."""
    seen = trace.visible(number, layer, sequence)
    return np.asarray(seen.any(axis=(0, 1)), np.bool_)[None]
