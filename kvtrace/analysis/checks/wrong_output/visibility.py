"""Which tokens each query sees, by content, against which it should see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_output.sight import Sight, named
from kvtrace.analysis.checks.wrong_rows.contents import check_misaligned

Rows = NDArray[np.intp]


def check_visibility(scene: Scene, identity: Identity) -> Finding | None:
    """Compare, for the first and last live query and one between, the places seen with the wanted.

    The one between is the first that sees others than it should: drafts of a tree, rows of a chunk.
    """
    live = scene.live
    for query in dict.fromkeys((int(live[0]), int(live[-1]), *_between(scene, identity))):
        rows = np.flatnonzero(scene.cached.visible[query])
        places = identity.place[rows]
        if (places < 0).any():
            continue
        want = set(np.flatnonzero(scene.reference.visible[query]).tolist())
        sight = Sight(scene, query, places.tolist(), want, set(identity.place.tolist()))
        found = named(sight)
        if found is not None:
            name, tensor, evidence = found
            if (name, tensor) == ("MASK", "k"):
                evidence += ": no such row is there, it was dropped or never written"
            row = query if tensor == "mask" else _row(scene, rows, places, sight.extra)
            return Finding(name, scene.step, scene.layer, tensor, evidence, row=row)
    return None


def _between(scene: Scene, identity: Identity) -> list[int]:
    """The first live query, of all, whose seen places are not those wanted; none if none is."""
    live, wanted = scene.live, scene.reference.visible
    rows = np.flatnonzero((identity.place >= 0) & (identity.place < wanted.shape[1]))
    if len(live) < 3 or not len(rows):
        return []
    stands = np.zeros((len(rows), wanted.shape[1]), np.float32)
    stands[np.arange(len(rows)), identity.place[rows]] = 1
    seen = scene.cached.visible[live][:, rows].astype(np.float32) @ stands > 0
    odd = live[(seen != wanted[live]).any(axis=1)]
    return [int(odd[0])] if len(odd) else []


def check_ahead(scene: Scene, identity: Identity) -> Finding | None:
    """Later tokens that are seen: the last query then sees a row that nobody has written yet."""
    found = check_visibility(scene, identity)
    return found if found is not None and found.name == "MASK-FUTURE" else None


def check_seen(scene: Scene, identity: Identity) -> Finding | None:
    """Which rows are seen; where some are gone in no known way, keys and values may have parted."""
    found = check_visibility(scene, identity)
    if found is None:
        return None
    dropped = (found.name, found.tensor) == ("MASK", "k")
    apart = dropped or _keys_alone(scene, identity)
    return (check_misaligned(scene, identity) if apart else None) or found


def _keys_alone(scene: Scene, identity: Identity) -> bool:
    """Whether the values that the last query sees are those it should, and its keys are not.

    Rows whose values are nobody's say nothing: what is wrong before this layer changes new ones.
    """
    query = int(scene.live[-1])
    rows = np.flatnonzero(scene.cached.visible[query])
    known = rows[identity.by_value[rows] >= 0]
    other = np.setdiff1d(rows, known)
    want = np.setdiff1d(np.flatnonzero(scene.reference.visible[query]), scene.supposed[other])
    keys, values = identity.by_key[known], identity.by_value[known]
    return np.array_equal(np.sort(values), want) and bool(((keys >= 0) & (keys != values)).any())


def said_of(
    scene: Scene, query: int, have: set[int], want: set[int]
) -> tuple[str, str, str] | None:
    """(kind, tensor, evidence) of a query that sees some places and should see others."""
    return named(Sight(scene, query, sorted(have), want, have))


def _row(scene: Scene, rows: Rows, places: Rows, extra: list[int]) -> int | None:
    """The attended row to look at: one that was replaced, is not wanted, or stands there twice.

    None where rows are missing and none is wrong.
    """
    changed = np.flatnonzero(scene.changed)
    if extra:
        unwanted = rows[np.isin(places, extra)]
        both = np.intersect1d(changed, unwanted)
        return int(both[0] if len(both) else unwanted[0])
    first = np.unique(places, return_index=True)[1]
    twice = np.setdiff1d(np.arange(len(places)), first)
    if len(twice):
        copies = rows[np.isin(places, places[twice])]
        both = np.intersect1d(changed, copies)
        return int(both[0] if len(both) else rows[twice[0]])
    return int(changed[0]) if len(changed) else None
