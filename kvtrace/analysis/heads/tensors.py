"""The rows of one head, of any tensor in any lane, as every map and number shows them.

KEYS and VALUES are the rows the attention was given, [seq, dim]; QUERIES and OUTPUT the rows of
this step, [new, dim].
"""

from __future__ import annotations

import numpy as np

from kvtrace.trace import CACHED, Site, Tensor, Trace, dtypes
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.step import Runs
from kvtrace.trace.view import positions_of

CACHE_TENSORS = (Tensor.KEYS, Tensor.VALUES)

NAMES = {Tensor.QUERIES: "q", Tensor.KEYS: "k", Tensor.VALUES: "v", Tensor.OUTPUT: "output"}
"""As findings and tables call them."""


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
    if lane != CACHED:
        return _lane_rows(trace, number, layer, tensor, head, sequence, lane)
    own = tensor_head(trace.site(layer), tensor, head)
    if tensor not in CACHE_TENSORS:
        rows = trace.rows(number, layer, tensor, sequence, head=own)
        return None if rows is None else rows[0]
    runs = attended_runs(trace, number, layer, sequence)
    parts = [cell_rows(trace, layer, tensor, own, run.cell, run.count) for run in runs]
    if not parts:
        return np.zeros((0, trace.cache_layer(layer).dim(tensor)), np.float32)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def cell_rows(
    trace: Trace, layer: int, tensor: Tensor, kv_head: int, first: int, count: int
) -> Floats:
    """K or V of consecutive cells of the cache layer a site reads, [count, dim].

    Raises:
        TraceError: The rows are damaged, or not there.
    """
    store = trace.cache_layer(layer)
    raw = trace.source.cells(store.index, tensor, first, count, kv_head)
    rows: Floats = dtypes.widen(raw, store.dtype)[0]
    return rows


def pass_rows(
    trace: Trace, lane: str, place: tuple[int, int], layer: int, tensor: Tensor, own: int
) -> Floats | None:
    """Rows of one head over all places of a lane's own forward, [places, dim].

    Those of K and V that stand in front of a text, for no token, come first.

    Args:
        trace: The trace.
        lane: Name of the lane.
        place: Number of the pass, and the sequence in it.
        layer: Site.
        tensor: Which tensor.
        own: Head of that tensor: a kv head for K and V.

    Raises:
        TraceError: The rows are damaged.
    """
    found = trace.meta.lane(lane)
    site = trace.site(layer)
    index = site.reads if tensor in CACHE_TENSORS else site.index
    raw = trace.source.pass_rows(lane, place[0], tensor, index, own)
    if raw is None or found is None or not 0 <= place[1] < len(raw):
        return None
    rows: Floats = dtypes.widen(raw[place[1]], found.dtype)[0]
    return rows


def _lane_rows(
    trace: Trace, number: int, layer: int, tensor: Tensor, head: int, sequence: int, lane: str
) -> Floats | None:
    """Rows of another lane that stand for the cached lane's."""
    reference = trace.reference(number, sequence, lane)
    if reference is None:
        return None
    own = tensor_head(trace.site(layer), tensor, head)
    if tensor not in CACHE_TENSORS:
        rows = reference.rows(layer, tensor, own)
        return None if rows is None else rows[0, reference.first :]
    runs = attended_runs(trace, number, layer, sequence)
    wanted = positions_of(runs)
    found = reference.rows_at(layer, tensor, wanted, own)
    return None if found is None or (found.size and bool(np.isnan(found).all())) else found[0]
