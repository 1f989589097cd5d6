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
    sizes = down.per_cell, across.per_cell
    if how is Pooling.MEAN:
        counts = np.outer(_counts(part.shape[0], sizes[0]), _counts(part.shape[1], sizes[1]))
        return np.asarray(_reduced(np.add, part, sizes) / counts, np.float32)
    high = _reduced(np.maximum, part, sizes)
    low = _reduced(np.minimum, part, sizes)
    return np.where(high >= -low, high, low)


def pooling_label(down: Binning, across: Binning, how: Pooling = Pooling.STRONGEST) -> str:
    """What the map's cells stand for; empty when each shows one value."""
    if down.per_cell == across.per_cell == 1:
        return ""
    return f"{how} of {across.per_cell}×{down.per_cell}"


def _reduced(how: np.ufunc, part: Floats, sizes: tuple[int, int]) -> Floats:
    """Both axes reduced by bins; the one that shrinks more first."""
    for axis in (0, 1) if sizes[0] > sizes[1] else (1, 0):
        part = _binned(how, part, sizes[axis], axis)
    return part


def _binned(how: np.ufunc, part: Floats, size: int, axis: int) -> Floats:
    """One axis reduced by bins of a size, the last one of what is left.

    Whole bins are reduced as one block: several times faster than `reduceat`.
    """
    if size == 1:
        return part
    moved = np.moveaxis(part, axis, 0)
    whole = len(moved) // size
    blocks = moved[: whole * size].reshape(whole, size, *moved.shape[1:])
    found = np.asarray(how.reduce(blocks, axis=1))
    if whole * size < len(moved):
        rest = np.asarray(how.reduce(moved[whole * size :], axis=0, keepdims=True))
        found = np.concatenate([found, rest])
    return np.moveaxis(found, 0, axis)


def _counts(length: int, size: int) -> NDArray[np.int64]:
    """Values in each bin of an axis."""
    return np.diff(np.append(np.arange(0, length, size), length))
