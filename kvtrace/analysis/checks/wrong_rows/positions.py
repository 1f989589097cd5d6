"""Queries at another position than theirs: by how much they are rotated, and what makes that so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_rows.turned import (
    EIGHT_BITS,
    Rotation,
    in_proportion,
    shift,
    slope,
    whole,
)


def _scaled_shift(scene: Scene, turn: Rotation, place: int) -> str | None:
    """A shift under frequencies that are not the usual ones, in words; None where it is none."""
    told = given(scene, place)
    first = in_proportion(turn)
    if not told and first is None:
        return None
    by = "is rotated" if first is None else f"is rotated by {first:+.3f} radians in plane 0"
    more = "" if first is None else ", the other planes in proportion, as by another position"
    return f"q of place {place} {by}{more}{told}"


def given(scene: Scene, place: int) -> str:
    """What the step was told its position is, where that is not its place."""
    row = int(np.searchsorted(scene.places, place))
    if scene.told is None or scene.held is None or scene.told[row] == place - scene.padding:
        return ""
    told = int(scene.told[row])
    others = np.flatnonzero((scene.held == told) & (scene.supposed != place) & (told > 0))
    more = ""
    if len(others):
        more = (
            f", and slot {scene.slots[others[0]]} holds a row of that position already: the "
            "position was counted wrong, or that row should have been dropped from the cache "
            "(a rejected draft, another branch)"
        )
    return f"; the step was given position {told} for it{more}"


def _why_by(n: int, scene: Scene, place: int) -> str:
    """What makes a query's position wrong by so many, in words; empty: nothing in particular."""
    past = int(scene.places[0]) - scene.padding
    if n == -past and past > 1:
        return ": counted from 0 again"
    if abs(n) == 1:
        return ": off by one"
    if abs(n) == EIGHT_BITS:
        return ": as if counted in eight bits"
    if n == -2 * (place - scene.padding):
        return ": turned the other way, by the sign of the sine"
    ahead = scene.front or scene.padding
    if ahead and abs(n) == ahead:
        what = "rows in front of the text, of no token," if scene.front else "padding"
        return f": {what} counted as positions"
    return ""


def rotated(
    scene: Scene, turn: Rotation, places: NDArray[np.int64], found: Callable[[str, str], Finding]
) -> Finding:
    """Name a rotation: one shift for all rows, or other frequencies."""
    furthest = int(scene.reference.keys.shape[1]) + 2
    n = shift(turn, max(furthest, 64))
    if n is not None:
        place = int(places[0])
        return found(
            "POSITION-ROPE",
            f"q of place {place} = the recomputed q rotated by {n:+d} positions"
            f"{_why_by(n, scene, place)}; lengths equal{given(scene, place)}",
        )
    known = _scaled_shift(scene, turn, int(places[0]))
    if known is not None:
        return found("POSITION-ROPE", known)
    per_position = slope(turn, places - scene.padding)
    if per_position is not None and whole(per_position):
        rate = float(per_position[0])
        what = "carry no rotation" if rate < 0 else "are rotated twice"
        scaled = "" if round(abs(rate), 2) == 1 else ", or that of positions scaled otherwise"
        evidence = f"q of place p is rotated by {rate:+.2g}·p: queries {what} here{scaled}"
        return found("POSITION-ROPE", evidence)
    if per_position is not None or len(places) == 1:
        angles = turn.angles[0]
        most = int(np.abs(angles).argmax())
        return found(
            "LENGTH-DEPENDENT-POSITIONS",
            f"q of place {places[0]} is rotated, but by no whole number of positions: by up to "
            f"{angles[most]:+.2g} radians, in plane {most} of {len(angles)}",
        )
    return found(
        "POSITION-ROPE", f"q of {len(places)} rows is rotated by angles that differ from row to row"
    )
