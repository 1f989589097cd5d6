"""Rows of K or V that a cache layer holds: the cells that runs name, or another lane's for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import dtypes
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.meta import CacheLayer, Tensor
from kvtrace.trace.reference import Reference
from kvtrace.trace.source import Source
from kvtrace.trace.step import Runs


def rows_of(
    source: Source, store: CacheLayer, tensor: Tensor, runs: Runs, head: int | None
) -> Floats:
    """The cells of runs, one after the other: [kv_heads, seq, dim].

    Args:
        source: Where they are stored.
        store: Cache layer.
        tensor: KEYS or VALUES.
        runs: Which cells.
        head: Only this kv head; the head axis then has length 1.
    """
    parts = [
        dtypes.widen(source.cells(store.index, tensor, run.cell, run.count, head), store.dtype)
        for run in runs
    ]
    if len(parts) == 1:
        return parts[0]
    empty = np.zeros(_shape(store, tensor, 0, head), np.float32)
    return np.concatenate(parts, axis=1) if parts else empty


def rows_elsewhere(
    reference: Reference | None,
    layer: int,
    store: CacheLayer,
    tensor: Tensor,
    positions: NDArray[np.int64],
    head: int | None,
) -> Floats:
    """Another lane's rows for these positions, NaN where it has none: [kv_heads, seq, dim].

    Args:
        reference: The lane's forward that covers the step; None: it was not kept.
        layer: Site.
        store: The cache layer that it reads.
        tensor: KEYS or VALUES.
        positions: Of the rows.
        head: Only this kv head; the head axis then has length 1.
    """
    found = None if reference is None else reference.rows_at(layer, tensor, positions, head)
    if found is not None:
        return found
    return np.full(_shape(store, tensor, len(positions), head), np.nan, np.float32)


def _shape(store: CacheLayer, tensor: Tensor, rows: int, head: int | None) -> tuple[int, int, int]:
    return store.num_kv_heads if head is None else 1, rows, store.dim(tensor)
