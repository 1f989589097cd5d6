"""Rows that are nearly right: rounded, quantised, or quantised and given another scale back."""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.scenes.relations import factor, factors, rounded_to
from kvtrace.analysis.checks.scenes.rows import counted
from kvtrace.analysis.checks.wrong_rows.grid import quantised
from kvtrace.analysis.checks.wrong_rows.levels import from_table, scaled_floats
from kvtrace.analysis.checks.wrong_rows.rounded_input import rounded_source
from kvtrace.trace.dtypes import Floats

_LEFT = 0.25
"""Of a difference, what may be left of it by quantising once a scale has explained the rest."""

_SCALED = 0.02

_STEPS = 2
"""Of a grid, that rounding to it never moves a number."""

_NUMBERS = 4
"""So many are not all off alike by chance."""


def inexact(
    tensor: str, mine: Floats, theirs: Floats, size: float, atol: float
) -> tuple[str, str] | None:
    """(kind, evidence) of rows that are nearly right; None where they are not.

    Args:
        tensor: Their letter.
        mine: [heads, rows, dim].
        theirs: What they should be, of the same shape.
        size: The largest number of a right row.
        atol: Absolute difference that counts as equal.
    """
    off = float(np.abs(mine - theirs).max())
    smaller = rounded_to(mine, theirs) if off < 0.2 * size else None
    if smaller is not None:
        return "DTYPE", f"every number of {counted(mine.shape[1])} of {tensor} fits in {smaller}"
    scaled = _scales(mine, theirs)
    shifted = None if scaled is not None else _shifts(mine, theirs)
    near = off < size or scaled is not None or shifted is not None
    grid = quantised(mine, theirs) if near else None
    table = from_table(mine, theirs) if grid is None and off < 0.35 * size else None
    if table is not None:
        values, what = table
        return "DTYPE", (
            f"{mine.shape[1]} rows of {tensor} take {values} values, once divided by the largest "
            f"of each {what}: they were quantised by a table and back"
        )
    floats = scaled_floats(mine, theirs) if grid is None and near else None
    if grid is None and floats is None:
        times = factor(mine, theirs, atol) or factors(mine, theirs, atol)
        source = rounded_source(mine, theirs) if times is None else None
        return None if source is None else ("DTYPE", _made_from(tensor, mine.shape[1], source))
    levels = _levels(tensor, mine.shape[1], grid, floats)
    if scaled is not None:
        return "OLD-ROWS-SCALED", (
            f"{levels}, by another scale: about {scaled[0]:.3g} to {scaled[1]:.3g} × the "
            "recomputed ones, each head of a row by a factor of its own"
        )
    if shifted is not None and grid is not None and _far(mine, grid[0], shifted[1:]):
        return "OLD-ROWS-SCALED", (
            f"{levels}, and are {shifted[1]:+.3g} to {shifted[2]:+.3g} away from the recomputed "
            f"ones, each {shifted[0]} by one number: a zero point is lost, or added twice"
        )
    return ("DTYPE", levels) if off < 0.35 * size else None


def _levels(
    tensor: str, rows: int, grid: tuple[int, str] | None, floats: tuple[str, str] | None
) -> str:
    """What rows were made of that lie on a grid, or else are small floats times a factor."""
    if grid is None:
        name, what = floats or ("", "")
        return (
            f"every number of {counted(rows)} of {tensor} fits in {name}, once it is divided by a "
            f"scale of each {what}: they were quantised to it and back"
        )
    bits, what = grid
    return (
        f"{rows} rows of {tensor} take evenly spaced values, {1 << bits} at most for each {what}: "
        f"they were quantised to {bits} bits and back"
    )


def _made_from(tensor: str, rows: int, source: str) -> str:
    return (
        f"{rows} rows of {tensor} are off alike in every head, by as much as rounding what they "
        f"are made from (a latent, an input) to {source} makes"
    )


def _shifts(mine: Floats, theirs: Floats) -> tuple[str, float, float] | None:
    """What is off by one number, and from which to which; None where that explains little."""
    off, found = mine.astype(np.float64) - theirs, list[tuple[float, str, float, float]]()
    for axis, what in ((2, "head of a row"), (1, "feature of a head")):
        each = off.mean(axis=axis, keepdims=True)
        left = float(np.abs(off - each).max())
        explained = left < _LEFT * np.abs(off).max() and left <= np.abs(each).min()
        if explained and mine.shape[axis] >= _NUMBERS:
            found.append((left, what, float(each.min()), float(each.max())))
    return min(found)[1:] if found else None


def _far(mine: Floats, bits: int, moved: tuple[float, float]) -> bool:
    """Whether rows are moved by more than rounding them to so many bits does."""
    step = float(np.ptp(mine)) / ((1 << bits) - 1)
    return max(map(abs, moved)) > _STEPS * step


def _scales(mine: Floats, theirs: Floats) -> tuple[float, float] | None:
    """Smallest and largest factor of a head of a row; None where they explain little."""
    wide, right = mine.astype(np.float64), theirs.astype(np.float64)
    length = np.maximum((right * right).sum(axis=2), 1e-30)
    factors = (wide * right).sum(axis=2) / length
    left = np.abs(wide - factors[..., None] * right).max()
    explained = left < _LEFT * np.abs(wide - right).max()
    if not explained or factors.min() <= 0 or np.abs(factors - 1).max() < _SCALED:
        return None
    return float(factors.min()), float(factors.max())
