"""How rows that should be equal are related: scaled, permuted, rounded.

Pure numpy on float32 arrays; `atol` is the absolute difference that still counts as equal.
"""

from __future__ import annotations

import numpy as np

from kvtrace.trace import dtypes
from kvtrace.trace.dtypes import Floats

_NUMBERS = 4
"""So many have a common factor by no chance."""


def close(left: Floats, right: Floats, atol: float) -> bool:
    """Whether two arrays are equal within `atol`; NaN equals nothing."""
    return left.shape == right.shape and bool((np.abs(left - right) <= atol).all())


def factor(left: Floats, right: Floats, atol: float) -> float | None:
    """The number that makes left = number · right, when it is not 1; else None."""
    a, b = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    weight = float(b @ b)
    if left.shape != right.shape or weight == 0:
        return None
    s = float(a @ b) / weight
    near_one = abs(s - 1) * float(np.abs(b).max()) <= 2 * atol
    # in narrow types a factor is little more than rounding: it must explain the most of it
    left_over = min(2 * atol * max(1.0, abs(s)), max(atol, float(np.abs(a - b).max()) / 2))
    fits = np.abs(a - s * b).max() <= left_over
    return s if fits and not near_one and abs(s) > 1e-6 else None


def factors(left: Floats, right: Floats, atol: float) -> tuple[float, str] | None:
    """A factor of its own for each row, head of a row, or feature, as scales of quantised rows are.

    Args:
        left: [heads, rows, dim].
        right: Of the same shape.
        atol: Absolute difference that counts as equal.

    Returns:
        The first factor, and what has one of its own; None where that explains nothing.
    """
    for what, order in (("row", (1, 0, 2)), ("head of a row", (0, 1, 2)), ("feature", (0, 2, 1))):
        numbers = left.shape[order[2]] * (left.shape[order[1]] if what == "row" else 1)
        if numbers < _NUMBERS:
            continue
        mine, theirs = (one.transpose(order).reshape(-1, numbers) for one in (left, right))
        found = [_factor_or_one(*pair, atol) for pair in zip(mine, theirs, strict=True)]
        known = [number for number in found if number is not None]
        if len(known) == len(found) and (others := [one for one in known if one != 1]):
            return others[0], what
    return None


def _factor_or_one(left: Floats, right: Floats, atol: float) -> float | None:
    return 1.0 if close(left, right, atol) else factor(left, right, atol)


def head_order(left: Floats, right: Floats, atol: float) -> tuple[int, ...] | None:
    """For each head of `left` the head of `right` it equals, when that is not its own.

    Args:
        left: [heads, ...].
        right: Of the same shape.
        atol: Absolute difference that counts as equal.
    """
    if left.shape != right.shape or len(left) < 2:
        return None
    order: list[int] = []
    for head, rows in enumerate(left):
        same = np.flatnonzero([close(rows, other, atol) for other in right])
        if not len(same):
            return None
        order.append(head if head in same else int(same[0]))
    return tuple(order) if order != list(range(len(order))) else None


def moved(left: Floats, right: Floats, atol: float) -> str:
    """What rows that are off have in common, in words that follow; empty: nothing.

    Args:
        left: [heads, rows, dim].
        right: Of the same shape.
        atol: Absolute difference that counts as equal.
    """
    _, rows, dim = left.shape
    apart = left - right
    # what was quantised besides is off by a little more
    near = max(2 * atol, float(np.abs(apart).max()) / 50)
    if dim >= _NUMBERS and close(apart, np.broadcast_to(apart[..., :1], apart.shape), near):
        return ", each head of a row by one number: a zero point is lost, or added twice"
    if rows >= _NUMBERS and close(apart, np.broadcast_to(apart[:, :1], apart.shape), near):
        return ", all by the same vector: a bias is left out, or added again"
    if dim >= _NUMBERS and rows >= _NUMBERS:
        one, other = (np.linalg.norm(side, axis=2) for side in (left, right))
        if close(one, other, 2 * atol):
            return (
                ", while every head of a row keeps its length: turned by some matrix, which the "
                "other side may lack"
            )
    return ""


def same_numbers(left: Floats, right: Floats, atol: float) -> bool:
    """Whether both hold the same multiset of numbers in another arrangement."""
    if left.size != right.size or left.size < 2:
        return False
    one, other = np.sort(left, axis=None), np.sort(right, axis=None)
    # many numbers lie close to those of any other rows: the same ones lie much closer
    near = min(atol / 8, float(np.abs(left - right).mean()) / 10)
    return close(one, other, atol) and bool(np.abs(one - other).mean() <= near)


def rounded_to(rows: Floats, reference: Floats) -> str | None:
    """The smaller dtype that represents every number of `rows` exactly, not so the reference."""
    for name in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"):
        if representable(rows, name) and not representable(reference, name):
            return name
    return None


def representable(rows: Floats, name: str) -> bool:
    """Whether every number of `rows` is one of that dtype."""
    wide = np.ascontiguousarray(rows, np.float32)
    if name == "bfloat16":
        return not (wide.view(np.uint32) & 0xFFFF).any()
    if name == "float16":
        with np.errstate(over="ignore"):
            return bool((wide.astype(np.float16).astype(np.float32) == wide).all())
    values = dtypes.widen(np.arange(256, dtype=np.uint8), name)
    return bool(np.isin(wide, values).all())
