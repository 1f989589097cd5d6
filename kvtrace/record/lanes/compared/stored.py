"""A lane's own forward, whole, in the layout the trace stores: a pass, addressed by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from kvtrace.files import StepRows
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared.heads import with_heads
from kvtrace.record.lanes.compared.margins import margins
from kvtrace.record.lanes.passes.batch import Batch
from kvtrace.record.steps.masks import Compact, Compactor
from kvtrace.record.steps.rows import as_stored
from kvtrace.trace import NO_TOKEN, CacheStep, Lane, Mask, Meta, Run, Site, SiteStep, Step, Trace
from kvtrace.trace.dtypes import Array

Crossed = Mapping[int, int]
"""Cache layers of cross-attention, and how many rows of another text they hold."""

Lengths = Mapping[int, tuple[int, int]]
"""Cache layers, how many rows they have in a pass, and how many of those in front of its text."""


def crossed(trace: Trace, batch: Batch) -> Crossed:
    """What the run attended to of another text, where that was as long in all of its steps."""
    layers = {site.reads for site in trace.meta.sites if site.kind == "cross"}
    lengths: dict[int, set[int]] = {}
    nodes = [node for path in batch.paths for node in path.nodes] if layers else []
    for node in nodes:
        for group in trace.step(node.step).caches:
            for layer in layers.intersection(group.layers):
                rows = sum(run.count for run in group.attended[node.sequence])
                lengths.setdefault(layer, set()).add(rows)
    return {layer: min(found) for layer, found in lengths.items() if len(found) == 1}


def in_front(trace: Trace, batch: Batch) -> Crossed:
    """Cache layers whose texts begin with rows in front of theirs that stand for no token."""
    layers = {site.reads for site in trace.meta.sites if site.kind == "self"}
    found = dict[int, int]()
    for path in batch.paths:
        for group in trace.step(path.root).caches if path.root >= 0 else ():
            around = margins(group.attended[min(path.row, len(group.attended) - 1)])
            if around is not None and around[0] and not around[1]:
                found |= dict.fromkeys(layers.intersection(group.layers), around[0])
    return found


def pass_bytes(meta: Meta, batch: Batch, rows: Crossed) -> int:
    """About how large a pass over all sites would be."""
    places = sum(
        (site.key_dim + site.value_dim)
        * (site.num_heads * batch.rows + site.num_kv_heads * rows.get(site.reads, batch.rows))
        for site in meta.sites
    )
    return 4 * places * len(batch.paths)  # in float32


def whole_pass(
    trace: Trace, lane: Lane, forward: Forward, batch: Batch, number: int
) -> tuple[Step, StepRows] | None:
    """A forward over a batch of paths as a step and its rows; None where no site fits.

    Args:
        trace: What was recorded; names the sites.
        lane: In whose dtype rows are stored.
        forward: The lane's.
        batch: What it ran over.
        number: Of the pass, counted per lane.
    """
    calls = {(call.module, call.call): call for call in forward.calls}
    meta, others, led = trace.meta, crossed(trace, batch), in_front(trace, batch)
    front = dict[int, int]()
    compactor = Compactor(forward.sequences, 0)
    queries: dict[int, Array] = {}
    output: dict[int, Array] = {}
    keys: dict[int, Array] = {}
    values: dict[int, Array] = {}
    masks: dict[int, Compact] = {}
    for site in meta.sites:
        call = calls.get((site.module, site.call))
        if call is not None and call.keys.shape[2] > batch.rows:
            front[site.reads] = led.get(site.reads, 0)
        own = batch.rows + front.get(site.reads, 0)
        seq = own if site.kind == "self" else others.get(site.reads)
        if call is None or seq is None or not _fits(site, call, batch.rows, seq):
            continue
        queries[site.index] = _stored(call.queries, lane.dtype)
        output[site.index] = _stored(call.output, lane.dtype)
        masks[site.index] = compactor.compact(call, seq)
        if site.reads not in keys:
            kv_heads = site.num_kv_heads
            keys[site.reads] = _stored(with_heads(call.keys, kv_heads), lane.dtype)
            values[site.reads] = _stored(with_heads(call.values, kv_heads), lane.dtype)
    if not queries:
        return None
    full = {site: one.full for site, one in masks.items() if one.full is not None}
    biases = {site: one.bias for site, one in masks.items() if one.bias is not None}
    lengths = {layer: (one.shape[2], front.get(layer, 0)) for layer, one in keys.items()}
    step = _step(batch, number, lengths, masks)
    return step, StepRows(queries, output, keys, values, full, biases)


def _fits(site: Site, call: AttentionCall, places: int, seq: int) -> bool:
    """Whether a call has the shapes that META names for its site, and so many keys."""
    heads = call.keys.shape[1]
    return (
        tuple(call.queries.shape[1:]) == (site.num_heads, places, site.key_dim)
        and tuple(call.output.shape[1:]) == (site.num_heads, places, site.value_dim)
        and call.keys.shape[2] == seq
        and 0 in (heads % site.num_kv_heads, site.num_kv_heads % heads)
        and (call.keys.shape[3], call.values.shape[3]) == (site.key_dim, site.value_dim)
    )


def _step(batch: Batch, number: int, lengths: Lengths, masks: Mapping[int, Compact]) -> Step:
    places = batch.rows
    groups: dict[Mask, list[int]] = {}
    for site, compact in masks.items():
        groups.setdefault(compact.mask, []).append(site)
    return Step(
        number=number,
        phase="prefill",
        parent=None,
        tokens=tuple(
            tuple(max(-1, token) for token in path.tokens) + (0,) * (places - len(path.tokens))
            for path in batch.paths
        ),
        positions=tuple(tuple(range(-path.padding, places - path.padding)) for path in batch.paths),
        chosen=(None,) * len(batch.paths),
        caches=tuple(_caches(batch, lengths)),
        sites=tuple(
            SiteStep(
                tuple(sites), mask, (None,) * len(sites), (0.0,) * len(sites), (0,) * len(sites)
            )
            for mask, sites in groups.items()
        ),
    )


def _caches(batch: Batch, lengths: Lengths) -> Iterator[CacheStep]:
    """One group for all cache layers with as many rows, as many of them in front."""
    for rows, front in dict.fromkeys(lengths.values()):
        layers = tuple(layer for layer, length in lengths.items() if length == (rows, front))
        runs = tuple(
            _runs(row * rows, rows, front, -path.padding if rows == batch.rows + front else 0)
            for row, path in enumerate(batch.paths)
        )
        yield CacheStep(layers, 0, rows, runs, runs, 0, rows)


def _runs(cell: int, rows: int, front: int, position: int) -> tuple[Run, ...]:
    """Rows of one path: those in front, and those of its tokens."""
    tokens = Run(cell + front, rows - front, front, position)
    return (Run(cell, front, 0, NO_TOKEN), tokens) if front else (tokens,)


def _stored(rows: torch.Tensor, dtype: str) -> Array:
    kind = getattr(torch, dtype)
    return np.ascontiguousarray(as_stored(rows.detach().to("cpu", kind).contiguous()))
