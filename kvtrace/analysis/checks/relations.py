"""How rows that should be equal are related: rotated, scaled, permuted, rounded.

Pure numpy on float32 arrays; `atol` is the absolute difference that still counts as equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import dtypes
from kvtrace.trace.dtypes import Floats

_EXACT = 0.02
"""Radians; what is known of an angle."""

_FEWEST_PLANES = 4
"""So many may fall geometrically by no chance."""

_NUMBERS = 4
"""So many have a common factor by no chance."""


def close(left: Floats, right: Floats, atol: float) -> bool:
    """Whether two arrays are equal within `atol`; NaN equals nothing."""
    return left.shape == right.shape and bool((np.abs(left - right) <= atol).all())


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rows turned in coordinate planes, as rotary embeddings do (Su et al., 2021).

    Attributes:
        style: "half" (i with i + d/2) or "interleaved" (2i with 2i + 1).
        start, size: The features that are rotated.
        angles: Radians per row and plane, [rows, size/2], in (-π, π]; left = R(angle) · right.
        sure: Which of them are known well, same shape: planes with tiny norm are not.
    """

    style: str
    start: int
    size: int
    angles: NDArray[np.float64]
    sure: NDArray[np.bool_]


def rotation(left: Floats, right: Floats, atol: float) -> Rotation | None:
    """The rotation that turns `right` into `left`, common to all heads of a row.

    Args:
        left: [heads, rows, dim].
        right: Of the same shape.
        atol: Absolute difference that counts as equal.
    """
    if left.shape != right.shape or close(left, right, atol):
        return None
    for start, size in _rotary_spans(left, right, atol):
        part = slice(start, start + size)
        for style in ("half", "interleaved"):
            a, b = _planes(left[..., part], style), _planes(right[..., part], style)
            found = _common_angles(a, b, atol)
            if found is not None:
                return Rotation(style, start, size, *found)
    return None


def _rotary_spans(left: Floats, right: Floats, atol: float) -> list[tuple[int, int]]:
    """Features that may be rotated, (start, size), those closest around what differs first."""
    dim = left.shape[-1]
    differs = np.flatnonzero((np.abs(left - right) > atol).any(axis=(0, 1)))
    first, last = int(differs[0]), int(differs[-1]) + 1
    ends = {dim, last, last + last % 2, *(dim // part * 2 for part in (8, 4, 2)), dim // 2}
    starts = {0, first, first - first % 2, *(dim - end for end in ends)}
    spans = {
        (start, end - start)
        for start in starts
        for end in ends | {dim}
        if 0 <= start <= first and last <= end <= dim and (end - start) % 2 == 0
    }
    return sorted(spans, key=lambda span: (span[1], span[0]))


def _planes(rows: Floats, style: str) -> NDArray[np.complex128]:
    """Coordinate pairs as complex numbers, [heads, rows, dim/2]."""
    wide = rows.astype(np.float64)
    half = rows.shape[-1] // 2
    if style == "half":
        return wide[..., :half] + 1j * wide[..., half:]
    return wide[..., 0::2] + 1j * wide[..., 1::2]


def _common_angles(
    left: NDArray[np.complex128], right: NDArray[np.complex128], atol: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """Angles per row and plane if lengths agree and all heads turn alike."""
    if (np.abs(np.abs(left) - np.abs(right)) > 2 * atol).any():
        return None
    total = (left * right.conj()).sum(axis=0)
    length = (np.abs(right) ** 2).sum(axis=0)
    angles = np.angle(total)
    turned = right * np.exp(1j * angles)
    if (np.abs(turned - left) > 4 * atol).any():
        return None
    sure = np.sqrt(length) > 50 * atol
    return np.where(sure, angles, 0.0), sure


def wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Into (-π, π]."""
    return np.asarray(np.angle(np.exp(1j * angle)), np.float64)


def slope(turn: Rotation, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Radians per position and plane if every angle is position × slope; else None.

    Needs two rows one position apart, so that no angle is wrapped unseen.
    """
    order = np.argsort(positions, kind="stable")
    gaps = np.flatnonzero(np.diff(positions[order]) == 1)
    if not len(gaps):
        return None
    first, second = order[gaps[0]], order[gaps[0] + 1]
    per_position = wrap(turn.angles[second] - turn.angles[first])
    fits = np.abs(wrap(turn.angles - positions[:, None] * per_position)) < 0.02
    known = turn.sure & turn.sure[first] & turn.sure[second]
    return per_position if bool((fits | ~known).all()) and known.any() else None


def shift(turn: Rotation, furthest: int) -> int | None:
    """Positions by which all rows are turned alike; None if they are not.

    Rotary frequencies fall geometrically from 1 (θ_i = base^(-2i/d)); a shift n turns plane i by
    n·θ_i. n is the integer for which one base explains all planes.

    Args:
        turn: The rotation.
        furthest: Largest shift to consider.
    """
    sure = turn.sure.all(axis=0)
    spread = np.abs(wrap(turn.angles - turn.angles[:1])).max(axis=0)
    if not sure.any() or (spread[sure] > 0.02).any():
        return None
    angles = turn.angles[0]
    planes = np.flatnonzero(sure)
    best: tuple[float, int] | None = None
    for size in range(1, furthest + 1):
        for n in (-size, size):
            misfit = _misfit(angles, planes, n)
            if misfit < 0.02:
                return n
            if best is None or misfit < best[0]:
                best = (misfit, n)
    # the fastest plane turns by one radian a position, however the others are scaled
    near = best is not None and best[0] < 0.2
    exact = best is not None and abs(float(wrap(angles[:1] - best[1])[0])) < _EXACT
    return best[1] if best and near and (exact or planes[0] != 0) else None


def in_proportion(turn: Rotation) -> float | None:
    """Radians of the fastest plane, where angles fall geometrically as in any shift; else None.

    So they do where positions are divided by a factor, whatever it is.
    """
    sure = turn.sure.all(axis=0)
    spread = np.abs(wrap(turn.angles - turn.angles[:1])).max(axis=0)
    if sure.sum() < _FEWEST_PLANES or not sure.all() or (spread > 0.02).any():
        return None
    angles = turn.angles[0]
    if (np.sign(angles) != np.sign(angles[0])).any() or not angles.all():
        return None
    steps = np.diff(np.log(np.abs(angles)))
    return (
        float(angles[0]) if (np.abs(steps - steps.mean()) < 0.02).all() and steps[0] < 0 else None
    )


def _misfit(angles: NDArray[np.float64], planes: NDArray[np.int64], n: int) -> float:
    """Largest angle that a shift by n leaves unexplained, under the best base."""
    count = len(angles)
    tail = int(planes[-1])
    head = abs(float(wrap(np.array([angles[planes[0]] - n]))[0])) if planes[0] == 0 else 0.0
    if tail == 0:
        return head
    slow = angles[tail] / n
    if slow <= 0 or head > 0.2:
        return max(head, np.pi if slow <= 0 else head)
    rate = np.log(min(slow, 1.0)) / tail
    expected = n * np.exp(rate * np.arange(count))
    return float(np.abs(wrap(angles - expected))[planes].max())


def factor(left: Floats, right: Floats, atol: float) -> float | None:
    """The number that makes left = number · right, when it is not 1; else None."""
    a, b = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    weight = float(b @ b)
    if left.shape != right.shape or weight == 0:
        return None
    s = float(a @ b) / weight
    near_one = abs(s - 1) * float(np.abs(b).max()) <= 2 * atol
    fits = np.abs(a - s * b).max() <= 2 * atol * max(1.0, abs(s))
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


def same_numbers(left: Floats, right: Floats, atol: float) -> bool:
    """Whether both hold the same multiset of numbers in another arrangement."""
    if left.size != right.size or left.size < 2:
        return False
    return close(np.sort(left, axis=None), np.sort(right, axis=None), atol)


def less_exact(left: Floats, right: Floats, atol: float) -> str | None:
    """How `left` is nearly `right`, but less exact, in words; None if it is not.

    Sines and cosines that are rounded turn and stretch every plane a little, all heads alike.
    """
    size = float(np.abs(right).max(initial=0.0))
    if left.shape != right.shape or not 0 < np.abs(left - right).max(initial=0.0) < 0.02 * size:
        return None
    smaller = rounded_to(left, right)
    if smaller is not None:
        return f"every number fits in {smaller}"
    if len(left) < 2 or left.shape[-1] % 2:
        return None
    for start, count in _rotary_spans(left, right, atol):
        part = slice(start, start + count)
        for style in ("half", "interleaved"):
            a, b = _planes(left[..., part], style), _planes(right[..., part], style)
            length = (np.abs(b) ** 2).sum(axis=0)
            turned = (a * b.conj()).sum(axis=0) / np.maximum(length, 1e-30)
            off = np.abs(turned - 1)[length > (50 * atol) ** 2].max(initial=0.0)
            stretched = np.abs(np.abs(turned) - 1)[length > (50 * atol) ** 2].max(initial=0.0)
            fits = np.abs(turned * b - a).max() <= 2 * atol
            if fits and 0 < off < 0.02 and stretched > 1e-5:
                return (
                    f"its planes are turned and stretched by up to {off:.2g}, all heads alike: "
                    "sine and cosine are less exact"
                )
    return None


def rounded_to(rows: Floats, reference: Floats) -> str | None:
    """The smaller dtype that represents every number of `rows` exactly, not so the reference."""
    for name in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"):
        if _representable(rows, name) and not _representable(reference, name):
            return name
    return None


def _representable(rows: Floats, name: str) -> bool:
    wide = np.ascontiguousarray(rows, np.float32)
    if name == "bfloat16":
        return not (wide.view(np.uint32) & 0xFFFF).any()
    if name == "float16":
        with np.errstate(over="ignore"):
            return bool((wide.astype(np.float16).astype(np.float32) == wide).all())
    values = dtypes.widen(np.arange(256, dtype=np.uint8), name)
    return bool(np.isin(wide, values).all())
