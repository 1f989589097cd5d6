"""Heads that keep rows of their own, as caches do that score rows head by head and drop some."""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity, matches
from kvtrace.analysis.checks.scenes.rows import finding
from kvtrace.analysis.checks.scenes.scene import Scene

_NAMED = 3


def check_rows_of_heads(scene: Scene, identity: Identity) -> Finding | None:
    """Rows that no token has as a whole, while each kv head's part is that of some token."""
    seen = scene.seen
    rows = seen[(identity.by_key[seen] < 0) & (identity.by_value[seen] < 0)]
    if not len(rows) or len(scene.cached.keys) < 2:
        return None
    wanted, lacks = set(scene.wanted.tolist()), list[list[int]]()
    for head in range(len(scene.cached.keys)):
        places = _places(scene, head, seen)
        if places is None or not places <= wanted:
            return None
        lacks.append(sorted(wanted - places))
    if not any(lacks) or all(one == lacks[0] for one in lacks):
        return None
    told = "; ".join(
        f"head {head} lacks {len(gone)}: {_first(gone)}" for head, gone in enumerate(lacks[:_NAMED])
    )
    more = f" and {len(lacks) - _NAMED} more heads" if len(lacks) > _NAMED else ""
    evidence = (
        f"each kv head sees rows of its own, {len(seen)} of {len(wanted)} places: {told}{more}"
    )
    head = next(head for head, gone in enumerate(lacks) if gone)
    return finding(scene, "EVICTED-EARLY", "k", evidence, rows, head)


def _places(scene: Scene, head: int, seen: np.ndarray) -> set[int] | None:
    """The places whose rows one kv head is given; None where a row is nobody's, or comes twice."""
    part, supposed = slice(head, head + 1), scene.supposed[seen]
    mine, right = scene.cached, scene.reference
    values = matches(mine.values[part, seen], right.values[part], supposed, scene.atol.values)
    # equal tokens have equal values, and keys of their own
    keys = matches(mine.keys[part, seen], right.keys[part], values, scene.atol.keys)
    if (values < 0).any() or (keys < 0).any() or len(set(keys.tolist())) < len(keys):
        return None
    again = right.values[part][:, keys] - mine.values[part, seen]
    return set(keys.tolist()) if np.abs(again).max() <= scene.atol.values else None


def _first(places: list[int]) -> str:
    """The first of some places, as text."""
    return ", ".join(map(str, places[:_NAMED])) + (" …" if len(places) > _NAMED else "")
