"""Keys that are rotated otherwise than the recomputed ones: by how much, and what it is called."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.rows import Indices, changed_before, counted
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_rows.turned import Rotation, rotation, shift, slope, whole
from kvtrace.trace.dtypes import Floats


def rotated(
    scene: Scene, rows: Indices, mine: Floats, theirs: Floats, atol: float
) -> tuple[str, str] | None:
    """Keys that are rotated: by the same for all, or in proportion to their position."""
    turn = rotation(mine, theirs, atol)
    if turn is None:
        return None
    places = scene.supposed[rows] - scene.padding
    old = bool(len(changed_before(scene, rows)))
    rated = _rated(scene, turn, places, old)
    if rated is not None:
        return rated
    n = shift(turn, int(scene.reference.keys.shape[1]) + 64)
    by = "by angles that vary" if n is None else f"by {n:+d} positions"
    if old and n is not None and len(rows) == 1 and n == -int(places[0]):
        return "KEYS-NOT-ROTATED", f"k of place {places[0]} lost its rotation: it is rotated {by}"
    if old:
        return "KEYS-ROTATED-AGAIN", f"{len(rows)} old rows are rotated {by} more"
    if n is not None and n == -int(places[0]) and not _others_turned(scene, rows) and n < -1:
        return "KEYS-NOT-ROTATED", f"k of place {places[0]} is rotated {by}"
    if n is not None and len(rows) == 1 and n == -int(places[0]) and n < -1:
        by += ", all of its position (as at position 0, or not rotated at all)"
    return "POSITION-ROPE-K", f"k of {counted(len(rows))} is rotated {by}, q is right"


def _rated(scene: Scene, turn: Rotation, places: Indices, old: bool) -> tuple[str, str] | None:
    """Keys that are rotated in proportion to their position, or to their distance to the end."""
    rate = slope(turn, places)
    if rate is not None and (len(places) > 1 or places[0] == 0):
        return _in_proportion(len(places), rate, old)
    newest = int(scene.supposed.max()) - scene.padding
    rate = slope(turn, places - newest) if len(places) > 1 else None
    if rate is None or not whole(rate) or rate[0] > 0:
        return None
    # what the newest row is rotated with is laid over all of them
    evidence = f"k of {counted(len(places))} is rotated to position {newest}, as the newest one is"
    return "KEYS-ROTATED-AGAIN" if old else "POSITION-ROPE-K", evidence


def _others_turned(scene: Scene, rows: Indices) -> bool:
    """Whether rows beside these are seen, beyond the first, whose rotation is none."""
    others = np.setdiff1d(scene.seen, rows)
    return bool((scene.supposed[others] > scene.padding).any())


def _in_proportion(rows: int, rates: NDArray[np.float64], old: bool) -> tuple[str, str]:
    """Row p is rotated by rate·p in each plane."""
    rate = float(rates[0])
    if whole(rates) and rate > 0:
        which = "old rows" if old else "rows"
        return "KEYS-ROTATED-AGAIN", f"row p of {rows} {which} is rotated by {rate:+.2g}·p"
    if whole(rates):
        evidence = f"row p of {rows} rows is the recomputed one rotated by {rate:+.2g}·p"
        return "KEYS-NOT-ROTATED", evidence
    return (
        "LENGTH-DEPENDENT-POSITIONS",
        f"k of {rows} rows is rotated in proportion to its position, with other frequencies "
        f"than the recomputed one (plane 0: {rate:+.2g} radians a position)",
    )
