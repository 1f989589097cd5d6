"""How much a step computed, and how much it would have computed without a cache."""

from __future__ import annotations

from msgspec import Struct

from kvtrace.analysis.nature import latents_of
from kvtrace.analysis.rows.changes import LayerChange, changes
from kvtrace.errors import MissingError
from kvtrace.trace import Step, Trace


class Extent(Struct, frozen=True):
    """Rows of Q, K, V per sequence in one step.

    Attributes:
        computed: Rows this step computed.
        without_cache: Rows a forward over all tokens so far computes, padding included.
        fresh: Tokens that no earlier step had computed; fewer than `computed` only when the model
            went over old tokens again.
        read_least, read_most: Rows read from the cache, over the self-attention layers.
        rewritten: Older rows that this step wrote anew, of the layer with the most.
        cross_read: Rows of an encoder read by cross-attention; 0 without any.
        latents: Whether the rows that the cache holds are latents, in every layer.
        expanded: Rows of K and V made from latents, old ones too; 0 without any.
        keeps: Whether any cache layer holds rows after the step.
        sequences: Rows of the batch.
    """

    computed: int
    without_cache: int
    fresh: int
    read_least: int
    read_most: int
    rewritten: int
    cross_read: int
    latents: bool
    expanded: int
    keeps: bool
    sequences: int


def extent(trace: Trace, number: int) -> Extent:
    """How many rows a step computed, read and avoided.

    Raises:
        MissingError: There is no such step.
    """
    step = trace.step(number)
    touched = changes(trace, number)
    crossed = {site.reads for site in trace.meta.sites if site.kind != "self"}
    own = [one for one in touched if one.cache_layer not in crossed and one.kind != "state"]
    held = [one for one in own if one.held]
    total = total_rows(step, own)
    return Extent(
        computed=step.new,
        without_cache=total,
        fresh=min(step.new, max(total - _before(trace, step), 0)),
        read_least=min((one.read for one in held), default=0),
        read_most=max((one.read for one in held), default=0),
        rewritten=max((one.rewritten for one in held), default=0),
        cross_read=max((one.read for one in touched if one.cache_layer in crossed), default=0),
        latents=bool(held)
        and all(trace.meta.cache_layers[one.cache_layer].latents for one in held),
        expanded=_expanded(trace, own),
        keeps=any(one.length_after > 0 for one in held),
        sequences=step.num_sequences,
    )


def total_rows(step: Step, layers: list[LayerChange]) -> int:
    """Rows of a forward over everything so far: by the positions, or by the longest cache."""
    last = max((row[-1] + 1 for row in step.positions if row), default=0)
    # what is made from held rows may be more than there are tokens: summaries of blocks, say
    return max([step.new, last, *(one.attended for one in layers if one.kind != "derived")])


def _expanded(trace: Trace, layers: list[LayerChange]) -> int:
    """Rows of K and V that were made from latents."""
    made = {site.reads for site in trace.meta.sites if latents_of(trace, site.index) is not None}
    return max((one.attended for one in layers if one.cache_layer in made), default=0)


def _before(trace: Trace, step: Step) -> int:
    """Rows that earlier steps of this sequence had computed."""
    if step.parent is None:
        return 0
    try:
        parent = trace.step(step.parent)
    except MissingError:
        return 0
    crossed = {site.reads for site in trace.meta.sites if site.kind != "self"}
    own = [one for one in changes(trace, parent.number) if one.cache_layer not in crossed]
    cropped = [
        after
        for event in step.events
        if event.kind in ("crop", "reset")
        for after in event.lengths_after
    ]
    rows = total_rows(parent, own)
    return min([rows, max(cropped)]) if cropped else rows
