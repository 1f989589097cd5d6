"""Minimum, maximum, mean and spread of a tensor, with NaN and infinity counted, never hidden."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from kvtrace.trace.dtypes import Floats


class Statistics(Struct, frozen=True):
    """Of the finite elements; NaN where there are none.

    Attributes:
        count: Elements in all.
        nan, infinite: How many are not finite.
        minimum, maximum, mean, std: Of the others; std is the population's.
    """

    count: int
    nan: int
    infinite: int
    minimum: float
    maximum: float
    mean: float
    std: float


def statistics(values: Floats) -> Statistics:
    """Of any array, calculated in float64."""
    if values.size and np.isfinite(values.min()) and np.isfinite(values.max()):
        nan, infinite, finite = 0, 0, values
    else:
        finite_mask = np.isfinite(values)
        nan = int(np.isnan(values).sum())
        infinite = values.size - int(finite_mask.sum()) - nan
        finite = values[finite_mask]
    if finite.size == 0:
        nothing = float("nan")
        return Statistics(values.size, nan, infinite, nothing, nothing, nothing, nothing)
    mean = float(finite.mean(dtype=np.float64))
    return Statistics(
        values.size,
        nan,
        infinite,
        float(finite.min()),
        float(finite.max()),
        mean,
        float(finite.std(dtype=np.float64)),
    )
