"""Scores that one number turns from the right ones into those of the cached lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kvtrace.analysis.checks.scenes.query import Query, Wide
from kvtrace.analysis.checks.wrong_output.minimum import least

Shape = Callable[[Wide, float], Wide]

_SHAPES: tuple[tuple[str, Shape], ...] = (
    ("softcap", lambda scores, cap: np.asarray(cap * np.tanh(scores / cap), np.float64)),
    ("clamp", lambda scores, cap: np.asarray(np.clip(scores, -cap, cap), np.float64)),
)

_ADDED = 1e-3
"""Scores that differ by less from q·k·scale are that alone."""


def bent(one: Query) -> tuple[str, str, str] | None:
    """One number that turns the right scores into those of the cached lane."""
    if one.logits.shape[1] < 2:
        return None
    grid = np.geomspace(1 / 64, 64, 97)
    both = [_plain_scale(one, output, grid) for output in (one.output, one.right)]
    if all(misfit <= one.atol for _, misfit in both):
        s = both[0][0] / both[1][0]
        if abs(s - 1) > 1e-3:
            return "SCALE", "weights", f"q·k is scaled by {s:.4g} × as much as when recomputed"
    s, misfit = least(lambda x: float(one.misfit(x * one.logits).max()), grid)
    if misfit <= one.atol and abs(s - 1) > 1e-3:
        return "SCALE", "weights", f"log-weights = {s:.4g} × the recomputed ones"
    s, misfit = least(lambda x: float(one.misfit(one.rescaled(x)).max()), grid)
    if misfit <= one.atol and abs(s - 1) > 1e-3:
        return "SCALE", "weights", f"q·k = {s:.4g} × the recomputed one, what is added is the same"
    return _line(one) or _nonlinear(one)


def _plain_scale(one: Query, output: Wide, grid: Wide) -> tuple[float, float]:
    """(factor, misfit) of the multiple of q·k that best explains an output."""
    return least(lambda x: float(one.misfit_of_scores(x * one.raw, output).max()), grid)


def _line(one: Query) -> tuple[str, str, str] | None:
    """A term linear in the position, with a slope of its own in every head."""
    if one.logits.shape[1] < 3:
        return None
    ramp = one.places - one.places.mean()
    slopes = []
    for head in range(len(one.logits)):

        def off(slope: float, head: int = head) -> float:
            return float(one.misfit(one.logits + slope * ramp)[head])

        slope, misfit = least(off, np.linspace(-2, 2, 161))
        if misfit > one.atol:
            return None
        slopes.append(slope)
    if max(map(abs, slopes)) < 1e-3:
        return None
    shown = ", ".join(f"{slope:+.3g}" for slope in slopes[:4])
    return "SCORE-BIAS", "weights", f"scores differ by {shown} a position (first heads)"


def _nonlinear(one: Query) -> tuple[str, str, str] | None:
    """A cap or clamp that one lane has and the other has not."""
    added = np.ptp(one.raw - one.logits, axis=1).max()
    if added > _ADDED and one.misfit_of_scores(one.raw).max() <= one.atol:
        if _capped(one):
            return "SCORE-NONLINEAR", "weights", "the cached lane uses q·k·scale without the cap"
        return "SCORE-BIAS", "weights", "the cached lane uses q·k·scale, and no bias is added to it"
    for scores, of in _totals(one):
        if one.misfit_of_scores(scores).max() <= one.atol:
            continue  # they are as they are: a cap out of their reach explains nothing
        reach = float(np.abs(scores).max())
        for what, shape in _SHAPES:

            def off(cap: float, scores: Wide = scores, shape: Shape = shape) -> float:
                return float(one.misfit_of_scores(shape(scores, cap)).max())

            cap, misfit = least(off, np.geomspace(reach / 64, reach * 8, 97))
            if misfit <= one.atol:
                evidence = f"a {what} of {cap:.4g}{of} explains the scores"
                return "SCORE-NONLINEAR", "weights", evidence
    return None


def _capped(one: Query) -> bool:
    """Whether the right output is that of scores that are bent by one number."""
    reach = float(np.abs(one.raw).max())
    for _, shape in _SHAPES:

        def off(cap: float, shape: Shape = shape) -> float:
            return float(one.misfit_of_scores(shape(one.raw, cap), one.right).max())

        if least(off, np.geomspace(reach / 64, reach * 256, 193))[1] <= one.atol:
            return True
    return False


def _totals(one: Query) -> Iterator[tuple[Wide, str]]:
    """What may have been bent: q·k alone, or with what is added to it, as far as that is known.

    Of a bias only differences are known: it is taken for 0 at the newest row, then at the oldest.
    """
    yield one.raw, ""
    if not one.plain:
        order = np.argsort(one.places)
        for row in (int(order[-1]), int(order[0])):
            level = one.raw[:, row : row + 1] - one.logits[:, row : row + 1]
            yield one.logits + level, " on scores and bias together"
