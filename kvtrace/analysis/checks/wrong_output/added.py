"""What is added to the scores, where a lane recorded it and the other has not the same."""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.scenes.query import Query, Wide
from kvtrace.analysis.checks.scenes.rows import Indices
from kvtrace.analysis.checks.scenes.scene import Scene

_FURTHEST = 64
"""Places by which a bias may be moved."""

_SAME = 1e-3


def other_bias(scene: Scene, one: Query, query: int, heads: Indices) -> tuple[str, str, str] | None:
    """Another bias than the recomputed one, where it explains the output.

    Args:
        scene: Whose query.
        one: The query, of some heads.
        query: Its new row.
        heads: Which heads those are.
    """
    pair = scene.biases(query)
    if pair is None:
        return None
    rows = np.flatnonzero(scene.cached.visible[query])
    wide = [np.broadcast_to(bias, (scene.site.num_heads, bias.shape[1])) for bias in pair]
    mine, right = (
        wide[lane][heads][:, at].astype(np.float64) for lane, at in enumerate((rows, one.places))
    )
    apart = mine - right
    alone = not (mine.any() and right.any())
    # softmax does not see what is added to all
    usual = np.sort(apart, axis=1)[:, (apart.shape[1] - 1) // 2] if alone else apart[:, -1]
    far = np.abs(apart - usual[:, None])
    if far.max() < _SAME or one.misfit(one.logits + apart).max() > one.atol:
        return None
    order = np.argsort(one.places)
    row = int(far.max(axis=0).argmax())
    more = "" if alone else _moved(mine[:, order], right[:, order])
    if alone:
        more = f"; none is seen {'without' if mine.any() else 'with'} the cache"
    evidence = (
        f"what is added to the scores differs by up to {far.max():.3g}, most at place "
        f"{one.places[row]}{more}"
    )
    return "SCORE-BIAS", "weights", evidence


def _moved(mine: Wide, right: Wide) -> str:
    """By how many places the bias is that of another row, in words."""
    for size in range(1, min(_FURTHEST, mine.shape[1] - 2)):
        for n, held, there in (
            (size, mine[:, :-size], right[:, size:]),
            (-size, mine[:, size:], right[:, :-size]),
        ):
            if np.abs(held - there).max() < _SAME:
                less = "less" if n > 0 else "more"
                return f": each row has that of a distance {size} {less}"
    return ""
