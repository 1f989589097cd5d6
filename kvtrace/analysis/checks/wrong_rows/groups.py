"""How quantisers cut rows into groups, each with a scale of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats

_SIZES = (128, 64, 32, 16, 8)
"""Of groups that are neither rows nor features."""

_FEWEST_NUMBERS = 8
"""In a group; with fewer, numbers fit a grid by chance."""

_GROUPS = 48
"""Groups that are looked at; all must fit."""


def grouped(
    rows: Floats, reference: Floats
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Ways in which quantisers cut rows into groups, as [groups, numbers].

    What all heads share, as the rotary key of a latent attention, counts once.
    """
    if all((one == one[:1]).all() for one in (rows, reference)):
        rows, reference = rows[:1], reference[:1]
    for (what, mine), (_, theirs) in zip(_ways(rows), _ways(reference), strict=True):
        if mine.shape[1] >= _FEWEST_NUMBERS:
            yield what, mine[:_GROUPS].astype(np.float64), theirs[:_GROUPS].astype(np.float64)


def _ways(rows: Floats) -> Iterator[tuple[str, Floats]]:
    """What a group is made of, and [heads, rows, dim] cut into such groups."""
    _, count, dim = rows.shape
    sizes = [size for size in _SIZES if rows.size % size == 0]
    features = rows.transpose(0, 2, 1)
    yield "head and row", rows.reshape(-1, dim)
    yield "row", rows.transpose(1, 0, 2).reshape(count, -1)
    for size in sizes:
        yield f"{size} numbers", rows.reshape(-1, size)
    yield "feature", features.reshape(-1, count)
    for size in sizes:
        if size < count and count % size == 0:
            yield f"feature of {size} rows", features.reshape(-1, size)
    for size in sizes:
        yield f"{size} numbers far apart", rows.reshape(size, -1).T
    yield "tensor", rows.reshape(1, -1)
