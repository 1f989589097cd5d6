"""Many values shown as one, and said so.

"strongest" keeps the value of largest magnitude with its sign: nothing large is missed, but pooled
columns look stronger than single ones. "mean" does the opposite. What is printed beside a map is
which of them was used, and over how many values.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats
from kvtrace_tui.drawing.binning import Binning


class Pooling(StrEnum):
    """How the values of a bin become one."""

    STRONGEST = "strongest"
    MEAN = "mean"


def pooled(
    values: Floats, down: Binning, across: Binning, how: Pooling = Pooling.STRONGEST
) -> Floats:
    """One value for each bin, [down.bins, across.bins].

    A bin with a NaN is NaN: trouble is never averaged away.

    Args:
        values: [down, across], the whole axes.
        down: Bins of the first axis.
        across: Bins of the second axis.
        how: Which value stands for a bin.
    """
    part = values[down.first : down.stop, across.first : across.stop]
    if part.size == 0:
        return np.zeros((down.bins, across.bins), np.float32)
    if down.per_cell == across.per_cell == 1:
        return part
    rows = np.arange(0, part.shape[0], down.per_cell)
    columns = np.arange(0, part.shape[1], across.per_cell)
    if how is Pooling.MEAN:
        total = _reduced(np.add, part, rows, columns)
        counts = np.diff(np.append(rows, part.shape[0]))[:, None] * np.diff(
            np.append(columns, part.shape[1])
        )
        return np.asarray(total / counts)
    high = _reduced(np.maximum, part, rows, columns)
    low = _reduced(np.minimum, part, rows, columns)
    return np.where(high >= -low, high, low)


def pooling_label(down: Binning, across: Binning, how: Pooling = Pooling.STRONGEST) -> str:
    """What the map's cells stand for; empty when each shows one value."""
    if down.per_cell == across.per_cell == 1:
        return ""
    return f"{how} of {across.per_cell}×{down.per_cell}"


def _reduced(
    how: np.ufunc, part: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Floats:
    return np.asarray(how.reduceat(how.reduceat(part, rows, axis=0), columns, axis=1))
