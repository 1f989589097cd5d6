"""Queries, keys and values that are off as if the input of their layer had been rounded.

Rounding is nearly the same share of every number, and a projection keeps it: all heads of all
three are off by about as much of their size as the numbers of the smaller type are apart. Told only
by that: another small disturbance of the same size would look alike.
"""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.scenes.rows import Indices
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.trace.dtypes import Floats

_SHARE = {"bfloat16": 0.735 * 2**-7 / 12**0.5, "float16": 0.735 * 2**-10 / 12**0.5}
"""Root mean square of the rounding error of numbers whose mantissas are spread evenly."""

_NEAR = 1.6
"""Times as much, or as little, a tensor may be off; a single head twice that."""

_NUMBERS = 32
"""Of a tensor, so that its share is known."""

_EVIDENCE = 512
"""Numbers of q, k and v together: fewer are off alike, and by so much, by chance too."""


def rounded_input(scene: Scene, new: Indices) -> tuple[str, str] | None:
    """(kind, evidence) where a smaller type of the input explains how far all is off.

    Rounding spares no token: where some of the step are right, it is something else.

    Args:
        scene: At the first site that differs.
        new: New rows whose queries differ, as row numbers.
    """
    if len(new) != len(scene.live):
        return None
    rows = np.flatnonzero(np.isin(scene.supposed, scene.places[new]))
    mine, right = scene.cached, scene.reference
    there = scene.supposed[rows]
    if len(rows) != len(new) or mine.keys.shape[::2] != right.keys.shape[::2]:
        return None
    pairs = (
        (mine.queries[:, new], right.queries[:, new]),
        (mine.keys[:, rows], right.keys[:, there]),
        (mine.values[:, rows], right.values[:, there]),
    )
    if sum(theirs.size for _, theirs in pairs) < _EVIDENCE:
        return None
    for name, share in _SHARE.items():
        if all(_off_by(share, *pair) for pair in pairs):
            place = int(scene.places[new[0]])
            return "DTYPE", (
                f"q, k and v of place {place} are off alike, by about {share:.1g} of their size in "
                f"every head: as much as rounding the input of this layer to {name} makes"
            )
    return None


def rounded_source(mine: Floats, theirs: Floats) -> str | None:
    """The smaller type of what rows were made from, by how far they are off; None: no such.

    Args:
        mine: [heads, rows, dim].
        theirs: What they should be, of the same shape.
    """
    return next((name for name, share in _SHARE.items() if _off_by(share, mine, theirs)), None)


def _off_by(share: float, mine: Floats, theirs: Floats) -> bool:
    """Whether rows are off by about that share of their size, and every head is."""
    apart = (mine - theirs).astype(np.float64)
    size = np.sqrt((theirs.astype(np.float64) ** 2).mean(axis=(1, 2)))
    each = np.sqrt((apart**2).mean(axis=(1, 2))) / np.maximum(size, 1e-30) / share
    whole = float(np.sqrt((each**2).mean()))
    if apart[0].size * len(apart) < _NUMBERS:
        return False
    inside = (each < 2 * _NEAR) & (each > 0.5 / _NEAR)
    return bool(inside.all()) and 1 / _NEAR < whole < _NEAR
