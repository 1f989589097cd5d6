"""Rows that take few evenly spaced values: what quantising and scaling back leaves of them.

Symmetric or not, the smallest and the largest number of a group are two of its levels, so the
levels are found without knowing scale and zero point. Levels that are not even are those of a
table, times the largest number of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats

_MOST = 255
_FEWEST_NUMBERS = 8
"""In a group; with fewer, numbers fit a grid by chance."""

_GROUPS = 48
"""Groups that are looked at; all must fit."""

_OFF_GRID = 0.01

_FEW_NUMBERS = 4
"""In a group of which it is asked what quantising would have made of the right numbers."""

_TIED = 0.02
"""Of a step: so near to the middle between two levels, rounding may go either way."""

_TABLE = 32
"""Values of a table: 16 of four bits, and a zero or a sign more."""

_TIMES = 6
"""So many numbers for each value are not few by chance."""

_DIGITS = 1e4

SMALL_FLOATS = (("float8_e5m2", 2), ("float8_e4m3fn", 3))
"""Types of eight bits, and how many of them are mantissa."""

_FEWEST_FLOATS = 16
"""In a group; fewer fit by chance."""

_OFF_DIGIT = 0.05
"""Of the last bit: what scaling back may round, in bfloat16 too."""


def quantised(rows: Floats, reference: Floats) -> tuple[int, str] | None:
    """(bits, of what a group is made) of rows on a grid on which the reference is not.

    Args:
        rows: [heads, rows, dim].
        reference: Of the same shape.
    """
    for what, mine, theirs in _grouped(rows, reference):
        steps = _steps(mine)
        if steps and not _steps(theirs):
            return max(steps.bit_length(), 1), what
    return _in_fours(rows, reference)


def _in_fours(rows: Floats, reference: Floats) -> tuple[int, str] | None:
    """The same of groups of four numbers, which fit any grid: as quantising the right ones gives.

    Args:
        rows: [heads, rows, dim].
        reference: Of the same shape.
    """
    for name, axis in (("feature of 4 rows", 1), ("4 numbers", 2)):
        if rows.shape[axis] % _FEW_NUMBERS or not rows.size:
            continue
        mine, theirs = (
            np.moveaxis(one, axis, -1).reshape(-1, _FEW_NUMBERS).astype(np.float64)
            for one in (rows, reference)
        )
        for bits in range(2, 9):
            if any(_rounds_to(mine, theirs, *grid) for grid in _grids(theirs, bits)):
                return bits, name
    return None


def _grids(
    groups: NDArray[np.float64], bits: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(lowest level, step) of the grids that quantisers lay over groups.

    One goes from the smallest number to the largest, one is about zero, and the third is the
    first with zero on it.
    """
    low, high = (find(groups, axis=1, keepdims=True) for find in (np.min, np.max))
    step = np.maximum(high - low, 1e-30) / ((1 << bits) - 1)
    yield low, step
    most = np.maximum(np.abs(groups).max(axis=1, keepdims=True), 1e-30)
    yield np.zeros_like(low), most / ((1 << bits - 1) - 1 or 1)
    yield np.rint(low / step) * step, step


def _rounds_to(
    mine: NDArray[np.float64],
    theirs: NDArray[np.float64],
    low: NDArray[np.float64],
    step: NDArray[np.float64],
) -> bool:
    """Whether rounding the right groups to a grid gives these, and they were not on it before."""
    exact = (theirs - low) / step
    off = np.abs((mine - low) / step - np.rint(exact))
    tied = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < _TIED
    fits = (off <= _OFF_GRID) | tied & (off <= 1 + _OFF_GRID)
    return bool(fits.all() and (np.abs(exact - np.rint(exact)) > _OFF_GRID).any())


def from_table(rows: Floats, reference: Floats) -> tuple[int, str] | None:
    """(values, of what a group is made) of rows that take few values over each group's largest.

    Args:
        rows: [heads, rows, dim].
        reference: Of the same shape; it takes many.
    """
    for what, mine, theirs in _grouped(rows, reference):
        count = _values(mine)
        if mine.size >= _TIMES * count and count <= _TABLE < _values(theirs):
            return count, what
    return None


def scaled_floats(rows: Floats, reference: Floats) -> tuple[str, str] | None:
    """(type, of what a group is made) of rows that are small floats times a factor for each group.

    A float of few mantissa bits is a small whole number times a power of two, also below the
    smallest normal one. Times what the largest number of its group was, every number is.

    Args:
        rows: [heads, rows, dim].
        reference: Of the same shape; it is none.
    """
    # a factor of all is one of each row too: the widest group that fits is told
    for what, mine, theirs in reversed(list(_grouped(rows, reference))):
        if mine.shape[1] < _FEWEST_FLOATS:
            continue
        for name, bits in SMALL_FLOATS:
            if _fits_floats(mine, bits):
                return None if _fits_floats(theirs, bits) else (name, what)
    return None


def _fits_floats(groups: NDArray[np.float64], bits: int) -> bool:
    """Whether every number has so many bits of mantissa, once its group's factor is taken out."""
    most = np.abs(groups).max(axis=1, keepdims=True)
    groups, most = groups[most[:, 0] > 0], most[most[:, 0] > 0]
    if not len(groups):
        return False
    fits = np.zeros(len(groups), bool)
    for largest in range(1 << bits, 2 << bits):
        digits = np.frexp(groups / most * largest)[0] * (2 << bits)
        fits |= (np.abs(digits - np.rint(digits)) <= _OFF_DIGIT).all(axis=1)
    return bool(fits.all())


def _values(groups: NDArray[np.float64]) -> int:
    """Different numbers, once each group is divided by its largest."""
    most = np.maximum(np.abs(groups).max(axis=1, keepdims=True), 1e-30)
    return len(np.unique(np.rint(groups / most * _DIGITS)))


def _grouped(
    rows: Floats, reference: Floats
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Ways in which quantisers cut rows into groups, as [groups, numbers]."""
    heads, count, dim = rows.shape
    ways = (
        ("head and row", (0, 1, 2), (heads * count, dim)),
        ("row", (1, 0, 2), (count, heads * dim)),
        *(
            (f"{size} numbers", (0, 1, 2), (heads * count * dim // size, size))
            for size in (64, 32, 16, 8)
            if size < dim and dim % size == 0
        ),
        ("feature", (0, 2, 1), (heads * dim, count)),
        *(
            (f"feature of {size} rows", (0, 2, 1), (heads * dim * count // size, size))
            for size in (128, 64, 32, 16, 8)
            if size < count and count % size == 0
        ),
        ("tensor", (0, 1, 2), (1, heads * count * dim)),
    )
    for what, order, shape in ways:
        if shape[1] >= _FEWEST_NUMBERS:
            mine, theirs = (
                one.transpose(order).reshape(shape)[:_GROUPS].astype(np.float64)
                for one in (rows, reference)
            )
            yield what, mine, theirs


def _steps(groups: NDArray[np.float64]) -> int:
    """Most steps from the lowest to the highest level of any group; 0 where one has no levels."""
    low = groups.min(axis=1, keepdims=True)
    reach = groups.max(axis=1, keepdims=True) - low
    flat = reach[:, 0] == 0
    if flat.all():
        return 0
    unit = (groups[~flat] - low[~flat]) / reach[~flat]
    left, most = unit, 0
    for steps in range(1, _MOST + 1):
        scaled = left * steps
        off = np.abs(scaled - np.rint(scaled)).max(axis=1) > _OFF_GRID
        if not off.all():
            most = steps
        left = left[off]
        if not len(left):
            return most
    return 0
