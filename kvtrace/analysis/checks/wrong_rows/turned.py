"""Rows that are turned in coordinate planes, as rotary embeddings do, and by how many positions.

Pure numpy on float32 arrays; `atol` is the absolute difference that still counts as equal.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.relations import close, rounded_to
from kvtrace.trace.dtypes import Floats

_EXACT = (0.02, 0.1, 0.3)
"""Radians within which angles may be known; narrow types tell them less well."""

_BASES = 21
"""So many are tried where the slowest plane tells it only roughly."""

_EXPLAINED = 0.5
"""What a turn may leave of a difference."""

_FEWEST_PLANES = 4
"""So many may fall geometrically by no chance."""

EIGHT_BITS = 256
"""Where numbers in eight bits begin anew."""

_ABOUT_ONE = 0.15
"""How near to one radian a position the fastest plane turns, however the others are scaled."""


class Rotation(Struct, frozen=True):
    """Rows turned in coordinate planes, as rotary embeddings do (Su et al., 2021).

    Attributes:
        style: "half" (i with i + d/2) or "interleaved" (2i with 2i + 1).
        start, size: The features that are rotated.
        angles: Radians per row and plane, [rows, size/2], in (-π, π]; left = R(angle) · right.
        sure: Which of them are known well, same shape: planes with tiny norm are not.
        exact: Radians within which those are known.
    """

    style: str
    start: int
    size: int
    angles: NDArray[np.float64]
    sure: NDArray[np.bool_]
    exact: float = _EXACT[0]


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
) -> tuple[NDArray[np.float64], NDArray[np.bool_], float] | None:
    """Angles per row and plane if lengths agree and all heads turn alike."""
    if (np.abs(np.abs(left) - np.abs(right)) > 2 * atol).any():
        return None
    total = (left * right.conj()).sum(axis=0)
    length = np.sqrt((np.abs(right) ** 2).sum(axis=0))
    angles = np.angle(total)
    turned = right * np.exp(1j * angles)
    # in narrow types a turn is little more than rounding: it must explain the most of it
    left_over = min(4 * atol, max(atol, _EXPLAINED * float(np.abs(left - right).max())))
    if (np.abs(turned - left) > left_over).any():
        return None
    exact = next((one for one in _EXACT if _mostly(length * one > atol)), _EXACT[-1])
    sure = length * exact > atol
    small = np.abs(angles) <= exact
    if exact > _EXACT[0] and small[sure].all():
        return None
    return np.where(sure, angles, 0.0), sure, exact


def _mostly(sure: NDArray[np.bool_]) -> bool:
    """Whether half of the planes of every row are known."""
    return bool((2 * sure.sum(axis=1) >= sure.shape[1]).all())


def wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Into (-π, π]."""
    return np.asarray(np.angle(np.exp(1j * angle)), np.float64)


def slope(turn: Rotation, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Radians per position and plane if every angle is position × slope; else None.

    Needs two rows one position apart, so that no angle is wrapped unseen.
    """
    order = np.argsort(positions, kind="stable")
    where, angles, sure = positions[order], turn.angles[order], turn.sure[order]
    rate, known = np.zeros(angles.shape[1]), np.zeros(angles.shape[1], bool)
    gap = 1
    # what rows one position apart tell is too inexact for those far apart: step by step
    while gap <= where[-1] - where[0]:
        later = np.searchsorted(where, where + gap)
        first = np.flatnonzero(where[np.minimum(later, len(where) - 1)] == where + gap)
        second = later[first]
        both = sure[first] & sure[second]
        if gap == 1:
            known[:] = both.any(axis=0)
        left = (np.exp(1j * (angles[second] - angles[first] - gap * rate)) * both).sum(axis=0)
        rate += np.where(both.any(axis=0), np.angle(left), 0.0) / gap
        gap *= 2
    fits = np.abs(wrap(angles - where[:, None] * rate)) < turn.exact
    told = known & sure
    return wrap(rate) if bool((fits | ~told).all()) and told.any() else None


def whole(rate: NDArray[np.float64]) -> bool:
    """Whether rows that are off by so many radians a position lost a whole rotation, or got two.

    Scaled frequencies differ from the usual ones by less, and in other planes more. Where all
    positions are divided by a factor, what was lost is less than one radian, and falls as they do.

    Args:
        rate: Radians per position, [planes].
    """
    first = float(rate[0])
    if abs(abs(first) - 1) < _ABOUT_ONE:
        return True
    if first > -_EXACT[0] or len(rate) < _FEWEST_PLANES:
        return False
    fall = min(max(float(rate[1]) / first, 0.0), 1.0)
    return bool((np.abs(rate - first * fall ** np.arange(len(rate))) < _EXACT[0]).all())


def shift(turn: Rotation, furthest: int) -> int | None:
    """Positions by which all rows are turned alike; None if they are not.

    Rotary frequencies fall geometrically from 1 (θ_i = base^(-2i/d)); a shift n turns plane i by
    n·θ_i. n is the integer for which one base explains all planes.

    Args:
        turn: The rotation.
        furthest: Largest shift to consider; that of numbers in eight bits is, too.
    """
    sure = turn.sure.all(axis=0)
    spread = np.abs(wrap(turn.angles - turn.angles[:1])).max(axis=0)
    if not sure.any() or (spread[sure] > turn.exact).any():
        return None
    angles = _mean(turn.angles)
    planes = np.flatnonzero(sure)
    best: tuple[float, int] | None = None
    sizes = list(range(1, furthest + 1))
    if furthest < EIGHT_BITS and len(planes) >= _FEWEST_PLANES:
        sizes.append(EIGHT_BITS)
    for size in sizes:
        for n in (-size, size):
            misfit = _misfit(angles, planes, n, turn.exact)
            if misfit < max(_EXACT[0], turn.exact / 2):
                return n
            if best is None or misfit < best[0]:
                best = (misfit, n)
    # the fastest plane turns by one radian a position, however the others are scaled
    near = best is not None and best[0] < 0.2
    exact = best is not None and abs(float(wrap(angles[:1] - best[1])[0])) < turn.exact
    return best[1] if best and near and (exact or planes[0] != 0) else None


def in_proportion(turn: Rotation) -> float | None:
    """Radians of the fastest plane, where angles fall geometrically as in any shift; else None.

    So they do where positions are divided by a factor, whatever it is.
    """
    sure = turn.sure.all(axis=0)
    spread = np.abs(wrap(turn.angles - turn.angles[:1])).max(axis=0)
    fewest = sure.sum() < _FEWEST_PLANES or not sure.all()
    if fewest or turn.exact > _EXACT[0] or (spread > turn.exact).any():
        return None
    angles = turn.angles[0]
    if (np.sign(angles) != np.sign(angles[0])).any() or not angles.all():
        return None
    steps = np.diff(np.log(np.abs(angles)))
    even = bool((np.abs(steps - steps.mean()) < _EXACT[0]).all())
    return float(angles[0]) if even and steps[0] < 0 else None


def _mean(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the rows, [planes]."""
    return np.asarray(np.angle(np.exp(1j * angles).mean(axis=0)), np.float64)


def _misfit(angles: NDArray[np.float64], planes: NDArray[np.int64], n: int, exact: float) -> float:
    """Largest angle that a shift by n leaves unexplained, under the best base."""
    head = abs(float(wrap(np.array([angles[planes[0]] - n]))[0])) if planes[0] == 0 else 0.0
    told = planes[np.abs(angles[planes]) > 2 * exact]
    tail = int(told[-1]) if len(told) else int(planes[-1])
    if tail == 0:
        return max(head, float(np.abs(angles[planes[1:]]).max(initial=0.0)))
    slow = angles[tail] / n
    if slow <= 0 or head > 0.2:
        return max(head, np.pi if slow <= 0 else head)
    # the slower a plane, the less its angle tells of the base
    doubt = exact / abs(angles[tail]) / tail if exact > _EXACT[0] else 0.0
    rates = np.log(min(slow, 1.0)) / tail + np.linspace(-doubt, doubt, _BASES)
    expected = n * np.exp(rates[:, None] * planes)
    return float(np.abs(wrap(angles[planes] - expected)).max(axis=1).min())


def less_exact(left: Floats, right: Floats, atol: float) -> str | None:
    """How `left` is nearly `right`, but less exact, in words; None if it is not.

    Sines and cosines that are rounded turn and stretch every plane a little, all heads alike.
    """
    size = float(np.abs(right).max(initial=0.0))
    far = float(np.abs(left - right).max(initial=0.0)) if left.shape == right.shape else 0.0
    if not 0 < far < 0.02 * size:
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
            # where little is off, anything fits: turning must explain the most of it
            fits = np.abs(turned * b - a).max() <= min(2 * atol, far / 3)
            if fits and 0 < off < 0.02 and stretched > 1e-5:
                return (
                    f"its planes are turned and stretched by up to {off:.2g}, all heads alike: "
                    "sine and cosine are less exact"
                )
    return None
