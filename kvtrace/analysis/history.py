"""Both lanes over all steps: what the cost chart and the timeline draw, and the sums so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import Trace


@dataclass(frozen=True, slots=True)
class History:
    """One entry a step, ascending; -1 means not measured.

    Attributes:
        numbers: Step numbers, [steps].
        cached_flops, recomputed_flops: As computed, [steps].
        elapsed_ns, lane_ns: Wall time of both lanes, [steps].
        cache_bytes: After the step, [steps].
    """

    numbers: NDArray[np.int64]
    cached_flops: NDArray[np.int64]
    recomputed_flops: NDArray[np.int64]
    elapsed_ns: NDArray[np.int64]
    lane_ns: NDArray[np.int64]
    cache_bytes: NDArray[np.int64]

    def row(self, number: int) -> int | None:
        """The entry of a step; None if it is not there."""
        at = int(np.searchsorted(self.numbers, number))
        return at if at < self.numbers.size and self.numbers[at] == number else None


@dataclass(frozen=True, slots=True)
class SoFar:
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


def history(trace: Trace, lane: str = "recomputed", before: History | None = None) -> History:
    """All steps in both lanes.

    Args:
        trace: May have grown since.
        lane: The other lane.
        before: An earlier answer: the lane's times that it knows are not read again.
    """
    overview = trace.overview
    elapsed = overview["elapsed_ns"].astype(np.int64)
    numbers = overview["number"].astype(np.int64)
    return History(
        numbers,
        overview["cached_flops"].astype(np.int64),
        overview["recomputed_flops"].astype(np.int64),
        np.where(elapsed > 0, elapsed, -1),
        _lane_times(trace, lane, numbers, before),
        overview["cache_bytes"].astype(np.int64),
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
    trace: Trace, lane: str, numbers: NDArray[np.int64], before: History | None
) -> NDArray[np.int64]:
    times = np.full(numbers.size, -1, np.int64)
    found = trace.meta.lane(lane)
    if found is None or found.mode != "each":
        return times
    known = {}
    if before is not None:
        known = dict(zip(before.numbers.tolist(), before.lane_ns.tolist(), strict=True))
    for row, number in enumerate(numbers.tolist()):
        measured = known.get(number, -1)
        if measured < 0:
            compared = trace.compared(number, lane)
            measured = (
                -1 if compared is None or compared.elapsed_ns is None else compared.elapsed_ns
            )
        times[row] = measured
    return times


def _sum_if_measured(times: NDArray[np.int64]) -> int | None:
    return int(times.sum()) if times.size and bool((times >= 0).all()) else None
