"""Rows that take few values that are not evenly spaced: those of a table, or small floats.

Either times the largest number of a group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.wrong_rows.groups import grouped
from kvtrace.trace.dtypes import Floats

_TABLE = 32
"""Values of a table: 16 of four bits, and a zero or a sign more."""

_TIMES = 6
"""So many numbers for each value are not few by chance."""

_DIGITS = 1e4

SMALL_FLOATS = (("float8_e5m2", 2), ("float8_e4m3fn", 3))
"""Types of eight bits, and how many of them are mantissa."""

_FEWEST_FLOATS = 16
"""In a group; fewer fit by chance."""

_FIRST = 256
"""Numbers of a group that are asked before all are."""

_OFF_DIGIT = 0.05
"""Of the last bit: what scaling back may round, in bfloat16 too."""


def from_table(rows: Floats, reference: Floats) -> tuple[int, str] | None:
    """(values, of what a group is made) of rows that take few values over each group's largest.

    Args:
        rows: [heads, rows, dim].
        reference: Of the same shape; it takes many.
    """
    for what, mine, theirs in grouped(rows, reference):
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
    for what, mine, theirs in reversed(list(grouped(rows, reference))):
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
    # what does not fit shows in the first numbers; the widest group is a whole prompt's
    return all(_each_fits(part, most, bits) for part in (groups[:, :_FIRST], groups))


def _each_fits(groups: NDArray[np.float64], most: NDArray[np.float64], bits: int) -> bool:
    fits = np.zeros(len(groups), bool)
    for largest in range(1 << bits, 2 << bits):
        digits = np.frexp(groups / most * largest)[0] * (2 << bits)
        fits |= (np.abs(digits - np.rint(digits)) <= _OFF_DIGIT).all(axis=1)
    return bool(fits.all())


def _values(groups: NDArray[np.float64]) -> int:
    """Different numbers, once each group is divided by its largest."""
    most = np.maximum(np.abs(groups).max(axis=1, keepdims=True), 1e-30)
    return len(np.unique(np.rint(groups / most * _DIGITS)))
