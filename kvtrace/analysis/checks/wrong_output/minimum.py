"""The smallest value of a function of one number: a grid first, then golden-section search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_GOLDEN = (np.sqrt(5) - 1) / 2


def least(misfit: Callable[[float], float], grid: NDArray[np.float64]) -> tuple[float, float]:
    """(argument, value) of the minimum: the best of the grid, then golden-section search."""
    errors = [misfit(float(x)) for x in grid]
    place = int(np.argmin(errors))
    low, high = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, len(grid) - 1)])
    for _ in range(48):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if misfit(left) < misfit(right):
            high = right
        else:
            low = left
    middle = (low + high) / 2
    return middle, misfit(middle)
