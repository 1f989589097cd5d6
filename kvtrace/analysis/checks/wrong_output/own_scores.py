"""Outputs that are off for no other reason than that q and k are, which are right within rounding.

Where scores are large, rounding of q and k moves them by whole numbers, and the weights with them.
The scores of a lane's own q and k tell: if they lead to its own output, attention did what it
should. What is added to the scores, or caps them, is that of the other lane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.query import Query
from kvtrace.analysis.checks.scenes.scene import Scene

_OF_IT = 0.1
"""How much of a difference own scores may leave: by chance they do not explain nine tenths."""

_WHOLE = 1e-3
"""How near to 1 weights sum where nothing but rows takes a share."""


def own_scores(scene: Scene, one: Query, query: int, heads: NDArray[np.int64]) -> bool:
    """Whether some heads of a query made of their own scores what they should.

    Args:
        scene: Where q, k, v and the visible rows are right.
        one: The query with all its heads.
        query: Its row.
        heads: Those whose output differs.
    """
    group = scene.site.num_heads // scene.site.num_kv_heads
    keys = scene.reference.keys[heads // group][:, one.places].astype(np.float64)
    asked = scene.reference.queries[heads, query].astype(np.float64)
    rows = np.flatnonzero(scene.cached.visible[query])
    for tensor, atol in (("keys", scene.atol.keys), ("values", scene.atol.values)):
        mine = getattr(scene.cached, tensor)[:, rows]
        if np.abs(mine - getattr(scene.reference, tensor)[:, one.places]).max() > atol:
            return False
    right = np.einsum("hd,hrd->hr", asked, keys) * scene.site.scale
    part = one.only(heads)
    if np.abs(np.exp(part.logits).sum(axis=1) - 1).max() >= _WHOLE:
        return False
    far = np.abs(part.output - part.right).max(axis=-1)
    left = part.misfit(part.logits + part.raw - right)
    return bool((left <= np.maximum(_OF_IT * far, scene.atol.output / 8)).all())
