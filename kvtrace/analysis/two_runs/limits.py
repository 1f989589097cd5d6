"""What counts as rounding between two runs: what their own lanes show, and their settings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.noise import Noise, noise
from kvtrace.errors import TraceError
from kvtrace.trace import Trace

_LANE = "recomputed"

_ROUND_OTHERWISE = ("dtype", "attention", "device", "torch")
"""What two runs may differ in, so that numbers are rounded elsewhere."""

_TIMES = 4.0
"""Measured: at most 2.1, on tiny models of 24 architectures with 4 and with 12 layers."""


def limits(
    old: Trace, new: Trace, settings: tuple[tuple[str, str, str], ...]
) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
    """What is rounding: the less exact run decides; last, what could not be asked for it.

    Lanes of one run share its weights and its kernels. Two runs whose types or kernels differ
    round what those share as well.
    """
    (mine, lost), (theirs, gone) = _noise(old), _noise(new)
    larger = theirs if theirs.threshold.max() > mine.threshold.max() else mine
    threshold, reason = np.fmax(mine.threshold, theirs.threshold), larger.reason
    names = [name for name, *_ in settings if name in _ROUND_OTHERWISE]
    wide = {trace.meta.model.dtype for trace in (old, new)} <= {"float32", "float64"}
    if not names or (wide and "dtype" not in names):
        return threshold, reason, (*lost, *gone)
    why = f"; {_TIMES:.0f} times that, as the runs differ in {' and '.join(names)}"
    return _TIMES * threshold, reason + why, (*lost, *gone)


def _noise(trace: Trace) -> tuple[Noise, tuple[str, ...]]:
    """What is rounding in a run, without its lanes where those are damaged."""
    try:
        return noise(trace, _LANE), ()
    except TraceError as error:
        return noise(trace, _LANE, referee=False), (str(error),)
