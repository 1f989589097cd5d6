"""Both lanes over all steps: what the cost chart and the timeline draw, and the sums so far."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.cost.costs import lane_elapsed_ns
from kvtrace.trace import Trace

_AGAIN = 64
"""Steps, the newest, whose comparison may still come."""


class History(Struct, frozen=True):
    """One entry a step, ascending; -1 means not measured.

    Attributes:
        numbers: Step numbers, [steps].
        cached_flops, recomputed_flops: As computed, [steps].
        elapsed_ns, lane_ns: Wall time of both lanes, [steps].
        looked: Steps, from the first, whose time of the other lane was looked for; the others
            count as not measured.
    """

    numbers: NDArray[np.int64]
    cached_flops: NDArray[np.int64]
    recomputed_flops: NDArray[np.int64]
    elapsed_ns: NDArray[np.int64]
    lane_ns: NDArray[np.int64]
    looked: int = 0


class SoFar(Struct, frozen=True):
    """Sums over all steps up to one.

    Attributes:
        steps: How many.
        cached_flops, recomputed_flops: As computed.
        elapsed_ns: Of the cached lane; None unless every step was measured.
        lane_ns: Of the other lane; None unless every step was measured.
    """

    steps: int
    cached_flops: int
    recomputed_flops: int
    elapsed_ns: int | None
    lane_ns: int | None


def history(trace: Trace, before: History | None = None, at_most: int | None = None) -> History:
    """All steps in both lanes.

    Args:
        trace: May have grown since.
        before: An earlier answer: the lane's times that it knows are not read again.
        at_most: Look for the lane's times of so many more steps, and of none behind them.
    """
    overview = trace.overview
    elapsed = overview["elapsed_ns"].astype(np.int64)
    numbers = overview["number"].astype(np.int64)
    lane_ns, looked = _lane_times(trace, numbers, before, at_most)
    return History(
        numbers,
        overview["cached_flops"].astype(np.int64),
        overview["recomputed_flops"].astype(np.int64),
        np.where(elapsed > 0, elapsed, -1),
        lane_ns,
        looked,
    )


def so_far(past: History, number: int) -> SoFar:
    """Sums over the steps up to and including one."""
    count = int(np.searchsorted(past.numbers, number, side="right"))
    return SoFar(
        count,
        int(past.cached_flops[:count].sum()),
        int(past.recomputed_flops[:count].sum()),
        _sum_if_measured(past.elapsed_ns[:count]),
        _sum_if_measured(past.lane_ns[:count]),
    )


def _lane_times(
    trace: Trace,
    numbers: NDArray[np.int64],
    before: History | None,
    at_most: int | None,
) -> tuple[NDArray[np.int64], int]:
    """The lane's times, and of how many steps they were looked for."""
    times = np.full(numbers.size, -1, np.int64)
    found = trace.meta.lane("recomputed")
    if found is None or found.mode != "each":
        return times, numbers.size
    start = 0
    if before is not None:
        _, old, now = np.intersect1d(before.numbers, numbers, return_indices=True)
        times[now], start = before.lane_ns[old], before.looked
    stop = numbers.size if at_most is None else min(start + at_most, numbers.size)
    # a comparison may be written after its step: the newest are looked for again
    again = np.flatnonzero(times[max(start - _AGAIN, 0) : start] < 0) + max(start - _AGAIN, 0)
    for row in (*again.tolist(), *range(start, stop)):
        elapsed_ns = lane_elapsed_ns(trace, int(numbers[row]))
        if elapsed_ns is not None:
            times[row] = elapsed_ns
    return times, stop


def _sum_if_measured(times: NDArray[np.int64]) -> int | None:
    return int(times.sum()) if times.size and bool((times >= 0).all()) else None
