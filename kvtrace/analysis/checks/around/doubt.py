"""Whether a difference that no signature explains, and that is hardly too large, is rounding too.

The thresholds are relative to the largest number of one head in one step, and such a number may be
small. The referee tells what rounding does to the very head: where the cached lane is no further
from it than a few times what the recomputed lane is anywhere in the text, nothing was found.
"""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.classes import VAGUE
from kvtrace.analysis.checks.noise import TIMES_REFEREE, recurrent
from kvtrace.analysis.checks.report import Finding
from kvtrace.errors import TraceError
from kvtrace.trace import Tensor, Trace
from kvtrace.trace.dtypes import Floats

_NEAR = 4.0
"""Times what is rounding up to which a difference is doubtful."""

_UNJUDGED = 2.0
"""The same where there is no referee, in narrow types and behind recurrent layers."""


def doubtful(trace: Trace, found: Finding, lane: str) -> bool:
    """Whether a finding is only rounding.

    Args:
        trace: With passes of the lane and of the referee, if possible.
        found: With how far the lanes are apart, and what would be rounding.
        lane: The reference.
    """
    vague = found.name in VAGUE and found.apart is not None and found.limit is not None
    if not vague or not found.apart or not found.limit or found.apart > _NEAR * found.limit:
        return False
    count = trace.step(found.step).num_sequences
    try:
        near = [_as_near(trace, found, lane, one) for one in found.sequences or range(count)]
    except TraceError:
        return False
    if None in near:
        narrow = trace.meta.model.dtype not in ("float32", "float64")
        return (narrow or recurrent(trace)) and found.apart <= _UNJUDGED * found.limit
    return all(near)


def _as_near(trace: Trace, found: Finding, lane: str, sequence: int) -> bool | None:
    """Whether the cached lane is about as near to the referee as the other; None: not known."""
    theirs = trace.reference(found.step, sequence, lane)
    truth = trace.reference(found.step, sequence, "referee")
    if theirs is None or truth is None:
        return None
    new = slice(theirs.first, theirs.places)
    for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
        mine = trace.rows(found.step, found.layer, tensor, sequence)
        right, exact = theirs.rows(found.layer, tensor), truth.rows(found.layer, tensor)
        if mine is None or right is None or exact is None or right.shape != exact.shape:
            return None
        if mine.shape != exact[:, new].shape:
            return None
        usual = _far(right, exact)
        if (_far(mine, exact[:, new]) > TIMES_REFEREE * usual).any():
            return False
    return True


def _far(rows: Floats, exact: Floats) -> Floats:
    """Largest difference of each head, [heads]."""
    return np.asarray(np.abs(rows - exact).max(axis=(1, 2), initial=0.0), np.float32)
