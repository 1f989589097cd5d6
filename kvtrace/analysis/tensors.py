"""The rows of one head, of any tensor in any lane, as every map and number shows them.

KEYS and VALUES are the rows the attention was given, [seq, dim]; QUERIES and OUTPUT the rows of
this step, [new, dim].
"""

from __future__ import annotations

import numpy as np

from kvtrace.trace import CACHED, Site, Tensor, Trace, dtypes
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.step import Runs

CACHE_TENSORS = (Tensor.KEYS, Tensor.VALUES)


def tensor_head(site: Site, tensor: Tensor, head: int) -> int:
    """The head of a tensor that belongs to a query head: K and V have kv heads."""
    return site.kv_head(head) if tensor in CACHE_TENSORS else head


def attended_runs(trace: Trace, number: int, layer: int, sequence: int = 0) -> Runs:
    """The rows a sequence's attention was given, as runs over cells.

    Raises:
        MissingError: The site did not attend in this step.
    """
    attended = trace.cache_step(number, layer).attended
    return attended[sequence] if sequence < len(attended) else ()


def cell_rows(
    trace: Trace, layer: int, tensor: Tensor, kv_head: int, first: int, count: int, lane: str
) -> Floats:
    """K or V of consecutive cells of the cache layer a site reads, [count, dim].

    NaN where another lane has none of them.

    Raises:
        TraceError: The rows are damaged.
    """
    store = trace.cache_layer(layer)
    found = trace.meta.lane(lane)
    raw = trace.source.cells(store.index, tensor, first, count, lane, kv_head)
    if raw is None:
        dim = store.key_dim if tensor is Tensor.KEYS else store.value_dim
        return np.full((count, dim), np.nan, np.float32)
    rows: Floats = dtypes.widen(raw, store.dtype if found is None else found.dtype)[0]
    return rows


def head_rows(
    trace: Trace,
    number: int,
    layer: int,
    tensor: Tensor,
    head: int,
    sequence: int = 0,
    lane: str = CACHED,
) -> Floats | None:
    """Rows of one query head (K and V: of the kv head it reads), [rows, dim].

    None: not recorded in that lane. NaN rows: not recorded, among others that were.

    Raises:
        MissingError: The site did not attend in this step.
        TraceError: The rows are damaged.
    """
    site = trace.site(layer)
    own = tensor_head(site, tensor, head)
    if tensor not in CACHE_TENSORS:
        rows = trace.rows(number, layer, tensor, sequence, head=own, lane=lane)
        return None if rows is None else rows[0]
    runs = attended_runs(trace, number, layer, sequence)
    parts = [cell_rows(trace, layer, tensor, own, run.cell, run.count, lane) for run in runs]
    if not parts:
        return np.zeros((0, site.dim(tensor)), np.float32)
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return None if lane != CACHED and bool(np.isnan(rows).all()) else rows
