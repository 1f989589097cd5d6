"""How far rows of two lanes stand apart, stretch by stretch; numpy only."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats


class Apart(Struct, frozen=True):
    """Differences of one tensor, per head and stretch of rows: all arrays [heads, stretches].

    Attributes:
        max_abs: Largest |cached - lane|; inf where one side only is NaN or Inf.
        row, dim: Where it is: row within the stretch, feature.
        square: Sum of squares of the difference.
        count: Elements compared.
        reference: Largest |lane|.
    """

    max_abs: Floats
    row: NDArray[np.int64]
    dim: NDArray[np.int64]
    square: Floats
    count: NDArray[np.int64]
    reference: Floats


def apart(cached: Floats, lane: Floats, starts: NDArray[np.int64]) -> Apart:
    """Compare rows.

    Args:
        cached: [heads, rows, dim].
        lane: Same shape.
        starts: First row of each stretch, ascending from 0; none is empty.
    """
    difference = _distance(cached, lane)
    dims, highest = _largest(difference)
    _, reference = _largest(np.abs(lane))
    if not (np.isfinite(highest).all() and np.isfinite(reference).all()):
        difference = _finite(difference, cached, lane)
        dims, highest = _largest(difference)
        _, reference = _largest(np.where(np.isfinite(lane), np.abs(lane), 0))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("hrd,hrd->hr", difference, difference)
    lengths = np.diff(np.append(starts, cached.shape[1]))
    top = np.maximum.reduceat(highest, starts, axis=1)
    row = np.zeros(top.shape, np.int64)
    for stretch in np.flatnonzero(lengths > 1):
        start = starts[stretch]
        row[:, stretch] = highest[:, start : start + lengths[stretch]].argmax(axis=1)
    heads = np.arange(len(highest))[:, None]
    return Apart(
        top,
        row,
        dims[heads, starts + row],
        np.add.reduceat(squares, starts, axis=1),
        np.broadcast_to(lengths * cached.shape[2], top.shape),
        np.maximum.reduceat(reference, starts, axis=1),
    )


def beyond(
    cached: Floats, lane: Floats, starts: NDArray[np.int64], limit: Floats
) -> NDArray[np.int64]:
    """Elements whose difference exceeds the limit of their head and stretch, [heads, stretches].

    Args:
        cached: [heads, rows, dim].
        lane: Same shape.
        starts: First row of each stretch.
        limit: [heads, stretches].
    """
    lengths = np.diff(np.append(starts, cached.shape[1]))
    each = np.repeat(limit, lengths, axis=1)[:, :, None]
    difference = _finite(_distance(cached, lane), cached, lane)
    counts: NDArray[np.int64] = np.add.reduceat((difference > each).sum(axis=2), starts, axis=1)
    return counts


def _largest(sizes: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Where the largest number of each row is, and the number; NaN where there is one.

    numpy finds the place of the largest of a few numbers faster than the number.
    """
    heads, rows, _ = sizes.shape
    dims: NDArray[np.int64] = sizes.argmax(axis=2)
    return dims, sizes[np.arange(heads)[:, None], np.arange(rows), dims]


def _distance(cached: Floats, lane: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = cached - lane
    out: Floats = np.abs(difference, out=difference)
    return out


def _finite(difference: Floats, cached: Floats, lane: Floats) -> Floats:
    """NaN and Inf on both sides alike are no difference; on one side, an infinite one."""
    same = (cached == lane) | (np.isnan(cached) & np.isnan(lane))
    made = np.where(np.isfinite(difference), difference, np.inf)
    return np.where(same, 0, made).astype(difference.dtype)
