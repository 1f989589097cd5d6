"""Many values shown as one, and said so.

The value of largest magnitude stands for its bin, with its sign: nothing large is missed, but
pooled columns look stronger than single ones. Over how many values is printed beside a map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats
from kvtrace_tui.drawing.maps.filling import Filling


def pooled(values: Floats, down: Filling, across: Filling) -> Floats:
    """One value for each bin, [down.bins, across.bins].

    A bin with a NaN is NaN: trouble is never averaged away.

    Args:
        values: [down, across], the whole axes.
        down: Bins of the first axis.
        across: Bins of the second axis.
    """
    part = values[down.first : down.stop, across.first : across.stop]
    if part.size == 0:
        return np.zeros((down.bins, across.bins), np.float32)
    axes = [(0, down), (1, across)]
    if down.per * across.scale < across.per * down.scale:
        axes.reverse()  # the one that shrinks more first
    for axis, bins in axes:
        if bins.pools:
            part = _strongest(part, bins.edges(), axis)
    return part


def pooling_label(down: Filling, across: Filling) -> str:
    """What the map's cells stand for; empty when each shows one value."""
    if not (down.pools or across.pools):
        return ""
    return f"strongest of {across.sizes}×{down.sizes}"


def _strongest(part: Floats, edges: NDArray[np.int64], axis: int) -> Floats:
    """One axis reduced by bins between edges, whose sizes differ by one at most.

    Index by index instead of `reduceat`, which is several times slower; the smaller bins count
    their last index twice, which changes no maximum.
    """
    moved = np.moveaxis(part, axis, 0)
    high = low = moved[edges[:-1]]
    for offset in range(1, int(np.diff(edges).max())):
        beside = moved[np.minimum(edges[:-1] + offset, edges[1:] - 1)]
        high, low = np.maximum(high, beside), np.minimum(low, beside)
    return np.moveaxis(np.where(high >= -low, high, low), 0, axis)
