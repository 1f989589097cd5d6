"""Weights that do not sum to 1, or to 1 though there is a sink, read off the output."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from kvtrace.analysis.checks.scenes.query import Query, Wide
from kvtrace.analysis.checks.scenes.relations import factor
from kvtrace.analysis.checks.scenes.scene import Scene

_SOLVED = 4
"""So many features are not by chance those of a sum with some rows left out."""

_SETS = 15_000
"""Sets of as many rows that are tried as those that dropout left out: all there are of 16 rows."""

_FEW = 3
"""Rows left out that even outputs of few features tell from others."""


def unlike_one(scene: Scene, one: Query) -> tuple[str, str, str] | None:
    """Weights that do not sum to 1, or to 1 though there is a sink, read off the output."""
    if scene.site.sinks:
        return _other_sink(one)
    sums = factors_of(one) or _solved_sums(one) or _sums_by_row(one)
    if sums is None or max(abs(total - 1) for total in sums) <= 0.01:
        return _dropped(one)
    spread = f"{min(sums):.3f} to {max(sums):.3f}"
    return "WEIGHTS-NOT-NORMALISED", "weights", f"weights of the heads sum to {spread}"


def _dropped(one: Query) -> tuple[str, str, str] | None:
    """Some weights are 0 and all others larger by one number, as dropout leaves them."""
    heads, rows, dim = one.values.shape
    if dim < _SOLVED:
        return None
    gone, larger = 0, list[float]()
    for mixed, right, output in zip(
        np.exp(one.logits)[..., None] * one.values, one.right, one.output, strict=True
    ):
        found = _left_out(mixed, right, output, one.atol)
        if found is None:
            return None
        gone, larger = gone + found[0], [*larger, found[1]]
    if not gone or min(larger) < 1.005 or max(larger) - min(larger) > 0.02:
        return None
    evidence = (
        f"{gone} of {heads * rows} weights are 0, the others {np.median(larger):.3g} times the "
        "right ones: dropout is active"
    )
    return "WEIGHTS-NOT-NORMALISED", "weights", evidence


def _left_out(mixed: Wide, right: Wide, output: Wide, atol: float) -> tuple[int, float] | None:
    """(rows left out of a head's sum, factor of the rest) that give its output; the fewest.

    Args:
        mixed: Each row's share of the right output, [rows, dim].
        right: It, [dim].
        output: Of the cached lane, [dim].
        atol: What is rounding.
    """
    rows, dim = mixed.shape
    for count in range(rows if dim >= 2 * _SOLVED else min(_FEW + 1, rows)):
        if comb(rows, count) > _SETS:
            return None
        sets = np.array([*combinations(range(rows), count)], np.int64)
        gone = np.zeros((len(sets), rows))
        np.put_along_axis(gone, sets.reshape(len(sets), count), 1.0, axis=1)
        rest = right - gone @ mixed
        factors = rest @ output / np.maximum((rest * rest).sum(axis=1), np.finfo(float).tiny)
        misfit = np.abs(rest * factors[:, None] - output).max(axis=1)
        best = int(misfit.argmin())
        if misfit[best] <= atol:
            return count, float(factors[best])
    return None


def _other_sink(one: Query) -> tuple[str, str, str] | None:
    """The learned sink takes another share than in the other lane, or none."""
    factors = factors_of(one)
    if factors is None or min(factors) <= 0:
        return None
    shares = np.exp(one.logits).sum(axis=1)
    mine = np.array(factors) * shares
    expected = f"recomputed to {shares.min():.3f} to {shares.max():.3f}"
    if np.abs(mine - 1).max() <= 0.01:
        evidence = f"the sink takes no share: the weights of the rows sum to 1, {expected}"
    elif mine.max() < 1.01:
        evidence = (
            "the sink takes another share (of another head, or scaled otherwise): the weights of "
            f"the rows sum to {mine.min():.3f} to {mine.max():.3f}, {expected}"
        )
    else:
        return None
    return "SCORE-NONLINEAR", "weights", evidence


def factors_of(one: Query) -> list[float] | None:
    """The right output times a number of its own in every head."""
    pairs = zip(one.output, one.right, strict=True)
    factors = [factor(mine, right, one.atol) for mine, right in pairs]
    found = [number for number in factors if number is not None]
    return found if len(found) == len(factors) else None


def _solved_sums(one: Query) -> list[float] | None:
    """Sum of the weights of each head, where the output determines them."""
    if one.values.shape[1] > one.values.shape[2]:
        return None
    sums = []
    for values, output in zip(one.values, one.output, strict=True):
        if np.linalg.cond(values) > 1e4:
            return None
        solved = np.linalg.lstsq(values.T, output, rcond=None)[0]
        if np.abs(values.T @ solved - output).max() > one.atol:
            return None
        sums.append(float(solved.sum()))
    return sums


def _sums_by_row(one: Query) -> list[float] | None:
    """The same where each row's weight is the right one times a number that all heads share."""
    heads, rows, dim = one.values.shape
    if heads * dim < 2 * rows:
        return None
    weights = np.exp(one.logits)
    mixed = (weights[..., None] * one.values).transpose(0, 2, 1).reshape(heads * dim, rows)
    wanted = one.output.reshape(heads * dim)
    factors = np.linalg.lstsq(mixed, wanted, rcond=1e-6)[0]
    if np.abs(mixed @ factors - wanted).max() > one.atol:
        return None
    return [float(total) for total in weights @ factors]
