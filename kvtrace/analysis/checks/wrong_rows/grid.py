"""Rows that take few evenly spaced values: what quantising and scaling back leaves of them.

Symmetric or not, the smallest and the largest number of a group are two of its levels, so the
levels are found without knowing scale and zero point.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.relations import representable
from kvtrace.analysis.checks.wrong_rows.groups import grouped
from kvtrace.trace.dtypes import Floats

_MOST = 255

_OFF_GRID = 0.01
"""Of a step, that numbers may lie beside a level."""

_ROUNDED = {"bfloat16": 2.0**-9, "float16": 2.0**-12}
"""Half of the last bit of types in which levels are scaled back, of a number."""

_ROUNDINGS = 4
"""Of a number and of the ends of its group: shifted by the zero point, then scaled."""

_MOST_ROUNDED = 0.15
"""Of a step; where rounding may make more of it, levels can't be told. Half of the groups must."""

_FEW_NUMBERS = 4
"""In a group of which it is asked what quantising would have made of the right numbers."""

_ENOUGH_GROUPS = 2
"""Of four numbers, two of which set the grid: so many do not lie on one of given bits by chance."""

_TIED = 0.02
"""Of a step: so near to the middle between two levels, rounding may go either way."""

_FIRST = 256
"""Groups, or numbers of a group, that are asked first: what they don't fit, all of them don't."""


def quantised(rows: Floats, reference: Floats) -> tuple[int, str] | None:
    """(bits, of what a group is made) of rows on a grid on which the reference is not.

    Args:
        rows: [heads, rows, dim].
        reference: Of the same shape.
    """
    rounding, found = _rounding(rows), list[tuple[int, str]]()
    for what, mine, theirs in grouped(rows, reference):
        steps = _steps(mine, rounding)
        if steps and not _steps(theirs, rounding):
            found.append((max(steps.bit_length(), 1), what))
    # parts of a group may fit a finer grid by chance
    return min(found, key=lambda one: one[0]) if found else _in_fours(rows, reference)


def _rounding(rows: Floats) -> float:
    """Half of the last bit of the numbers, of a number; 0 of those that have all their digits."""
    return next((half for name, half in _ROUNDED.items() if representable(rows, name)), 0.0)


def _steps(groups: NDArray[np.float64], rounding: float) -> int:
    """Most steps from the lowest to the highest level of any group; 0 where one has no levels.

    Args:
        groups: [groups, numbers].
        rounding: Of a number, what its type rounds it by.
    """
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    reach = high - low
    some = reach[:, 0] > 0
    if not some.any():
        return 0
    low, high, reach = low[some], high[some], reach[some]
    left, most, fit = (groups[some] - low) / reach, 0, 0
    blur = _ROUNDINGS * rounding * np.maximum(np.abs(low), np.abs(high)) / reach
    for steps in range(1, _MOST + 1):
        blurred = blur[:, 0] * steps > _MOST_ROUNDED
        fits = ~blurred & _on_levels(left[:, :_FIRST], blur, steps)
        fits[fits] = _on_levels(left[fits], blur[fits], steps)
        if fits.any():
            most, fit = steps, fit + int(fits.sum())
        left, blur = left[~fits & ~blurred], blur[~fits & ~blurred]
        if not len(left):
            break
    return most if not len(left) and 2 * fit >= some.sum() else 0


def _on_levels(
    left: NDArray[np.float64], blur: NDArray[np.float64], steps: int
) -> NDArray[np.bool_]:
    """Which groups have all their numbers on so many levels, from 0 to 1."""
    off = np.abs(left * steps - np.rint(left * steps)) > _OFF_GRID + blur * steps
    return np.asarray(~off.any(axis=1), np.bool_)


def _in_fours(rows: Floats, reference: Floats) -> tuple[int, str] | None:
    """The same of groups of four numbers, each of which fits a grid of some size.

    They are what quantising the right ones gives; or all lie on grids of the same few bits, as
    they do where what went into their layer was rounded before.

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
            few = mine[:_FIRST], theirs[:_FIRST]
            if _rounded(*few, bits, anew=False) and _rounded(mine, theirs, bits, anew=True):
                return bits, name
            if _on_their_own(mine, bits) and not _on_their_own(theirs, bits):
                return bits, name
    return None


def _on_their_own(groups: NDArray[np.float64], bits: int) -> bool:
    """Whether groups that are not zero, enough of them, lie on the grids that they span."""
    some = groups[groups.any(axis=1)]
    if len(some) < _ENOUGH_GROUPS:
        return False
    return any(
        _lies_on(some[:_FIRST], low[:_FIRST], step[:_FIRST]) and _lies_on(some, low, step)
        for low, step in _grids(some, bits)
    )


def _rounded(
    mine: NDArray[np.float64], theirs: NDArray[np.float64], bits: int, *, anew: bool
) -> bool:
    """Whether a grid of so many bits rounds the right groups to these.

    Args:
        mine: [groups, numbers].
        theirs: Of the same shape.
        bits: Of a number.
        anew: They must not have been on it before.
    """
    return any(
        _rounds_to(mine, theirs, *grid) and not (anew and _lies_on(theirs, *grid))
        for grid in _grids(theirs, bits)
    )


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
    """Whether rounding the right groups to a grid gives these."""
    exact = (theirs - low) / step
    off = np.abs((mine - low) / step - np.rint(exact))
    tied = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < _TIED
    return bool(((off <= _OFF_GRID) | tied & (off <= 1 + _OFF_GRID)).all())


def _lies_on(
    groups: NDArray[np.float64], low: NDArray[np.float64], step: NDArray[np.float64]
) -> bool:
    """Whether all numbers of groups are on a grid."""
    exact = (groups - low) / step
    return bool((np.abs(exact - np.rint(exact)) <= _OFF_GRID).all())
