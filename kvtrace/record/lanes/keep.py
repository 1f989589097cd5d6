"""A lane's own forward, whole, in the layout the trace stores: a pass, addressed by place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from kvtrace.files import StepRows
from kvtrace.record.calls import AttentionCall
from kvtrace.record.forward import Forward
from kvtrace.record.lanes.again import Batch
from kvtrace.record.lanes.heads import with_heads
from kvtrace.record.masks import Compact, Compactor
from kvtrace.record.rows import as_stored
from kvtrace.trace import CacheStep, Lane, Mask, Meta, Run, SiteStep, Step
from kvtrace.trace.dtypes import Array


def pass_bytes(meta: Meta, places: int, sequences: int, itemsize: int = 4) -> int:
    """About how large a pass over all sites would be."""
    row = sum(
        site.num_heads * (site.key_dim + site.value_dim)
        + site.num_kv_heads * (site.key_dim + site.value_dim)
        for site in meta.sites
    )
    return row * places * sequences * itemsize


def whole_pass(
    meta: Meta, lane: Lane, forward: Forward, batch: Batch, number: int
) -> tuple[Step, StepRows] | None:
    """A forward over a batch of paths as a step and its rows; None where no site fits.

    Args:
        meta: Names the sites.
        lane: In whose dtype rows are stored.
        forward: The lane's.
        batch: What it ran over.
        number: Of the pass, counted per lane.
    """
    calls = {(call.module, call.call): call for call in forward.calls}
    compactor = Compactor(forward.sequences, 0)
    queries: dict[int, Array] = {}
    output: dict[int, Array] = {}
    keys: dict[int, Array] = {}
    values: dict[int, Array] = {}
    masks: dict[int, Compact] = {}
    for site in meta.sites:
        call = calls.get((site.module, site.call))
        if call is None or site.kind != "self" or not _fits(meta, site.index, call, batch.rows):
            continue
        queries[site.index] = _stored(call.queries, lane.dtype)
        output[site.index] = _stored(call.output, lane.dtype)
        masks[site.index] = compactor.compact(call, batch.rows)
        if site.reads not in keys:
            kv_heads = site.num_kv_heads
            keys[site.reads] = _stored(with_heads(call.keys, kv_heads), lane.dtype)
            values[site.reads] = _stored(with_heads(call.values, kv_heads), lane.dtype)
    if not queries:
        return None
    full = {site: one.full for site, one in masks.items() if one.full is not None}
    biases = {site: one.bias for site, one in masks.items() if one.bias is not None}
    step = _step(batch, number, tuple(keys), masks)
    return step, StepRows(queries, output, keys, values, full, biases)


def _fits(meta: Meta, index: int, call: AttentionCall, places: int) -> bool:
    """Whether a call has the shapes that META names for its site."""
    site = meta.sites[index]
    heads, seq = call.keys.shape[1], call.keys.shape[2]
    return (
        tuple(call.queries.shape[1:]) == (site.num_heads, places, site.key_dim)
        and tuple(call.output.shape[1:]) == (site.num_heads, places, site.value_dim)
        and seq == places
        and 0 in (heads % site.num_kv_heads, site.num_kv_heads % heads)
        and (call.keys.shape[3], call.values.shape[3]) == (site.key_dim, site.value_dim)
    )


def _step(batch: Batch, number: int, layers: tuple[int, ...], masks: Mapping[int, Compact]) -> Step:
    places = batch.rows
    runs = tuple(
        (Run(row * places, places, 0, -path.padding),) for row, path in enumerate(batch.paths)
    )
    groups: dict[Mask, list[int]] = {}
    for site, compact in masks.items():
        groups.setdefault(compact.mask, []).append(site)
    return Step(
        number=number,
        phase="prefill",
        parent=None,
        tokens=tuple(
            tuple(path.tokens) + (0,) * (places - len(path.tokens)) for path in batch.paths
        ),
        positions=tuple(tuple(range(-path.padding, places - path.padding)) for path in batch.paths),
        chosen=(None,) * len(batch.paths),
        caches=(CacheStep(layers, 0, places, runs, runs, 0, places),),
        sites=tuple(
            SiteStep(
                tuple(sites), mask, (None,) * len(sites), (0.0,) * len(sites), (0,) * len(sites)
            )
            for mask, sites in groups.items()
        ),
    )


def _stored(rows: torch.Tensor, dtype: str) -> Array:
    kind = getattr(torch, dtype)
    return np.ascontiguousarray(as_stored(rows.detach().to("cpu", kind).contiguous()))
