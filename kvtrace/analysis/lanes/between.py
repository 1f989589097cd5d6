"""How far two other lanes are apart in a step: recomputed against referee, say.

What a trace keeps of a comparison is about the cached lane; this one reads rows.
"""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.heads.tensors import CACHE_TENSORS
from kvtrace.analysis.lanes.compare import quotient
from kvtrace.trace import Tensor, Trace
from kvtrace.trace.dtypes import Floats


def between(trace: Trace, number: int, layer: int, sequence: int, lanes: tuple[str, str]) -> Floats:
    """Largest relative difference over q, k, v and output of the step's new rows, [heads].

    K and V count for every query head that reads them. NaN where a lane has no rows.

    Args:
        trace: With the passes of both lanes.
        number: Step.
        layer: Site.
        sequence: Row of the batch.
        lanes: What is looked at, and what it is held against.

    Raises:
        TraceError: The rows are damaged.
    """
    site = trace.site(layer)
    worst: Floats = np.full(site.num_heads, np.nan, np.float32)
    first, second = (trace.reference(number, sequence, lane) for lane in lanes)
    if first is None or second is None or trace.step(number).site_step(site.index) is None:
        return worst
    for tensor in Tensor:
        mine, theirs = first.rows(layer, tensor), second.rows(layer, tensor)
        if mine is None or theirs is None:
            continue
        if tensor not in CACHE_TENSORS or site.kind != "cross":
            mine, theirs = mine[:, first.first :], theirs[:, second.first :]
        if mine.shape != theirs.shape or not mine.size:
            continue
        apart = np.abs(mine - theirs).max(axis=(1, 2))
        high = np.abs(theirs).max(axis=(1, 2))
        pairs = zip(apart.tolist(), high.tolist(), strict=True)
        heads = np.array([quotient(far, most) for far, most in pairs], np.float32)
        if tensor in CACHE_TENSORS:
            heads = np.repeat(heads, site.num_heads // site.num_kv_heads)
        worst = np.fmax(worst, heads)
    return worst
