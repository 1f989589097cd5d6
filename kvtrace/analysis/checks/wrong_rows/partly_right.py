"""Rows of which one part is right and the other is missing, or another token's."""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.scenes.identify import matches
from kvtrace.analysis.checks.scenes.rows import Indices, named_slots
from kvtrace.analysis.checks.scenes.scene import Scene

_FEATURES = 4
"""So many are not by chance those of another token."""

_ROWS = 2
"""So many are not by chance all as far away."""


def parted_features(
    scene: Scene, tensor: str, held: tuple[Indices, Indices], where: tuple[Indices, Indices]
) -> tuple[str, str] | None:
    """Some features of rows alone are wrong: they are zero, or those of another token.

    Args:
        scene: It.
        tensor: Whose rows.
        held: They, and the place of each by what else is known of it.
        where: Heads and features that are wrong.
    """
    (rows, others), (heads, part) = held, where
    ours, there, atol = scene.both(tensor)
    mine, theirs = ours[heads][:, rows][..., part], there[heads][..., part]
    first, last = int(part[0]), int(part[-1])
    if len(part) * len(heads) < _FEATURES:
        return None
    if not mine.any() and theirs.any():
        name = f"{tensor.upper()}-NOT-WRITTEN"
        which = f"features {first} to {last} of {tensor}, {named_slots(scene, rows)},"
        return name, f"{which} are all zero, the others are right"
    places = matches(mine, theirs, others, atol)
    known = _known(places, others)
    if known is None:
        return None
    evidence = (
        f"slot {scene.slots[rows[known]]}: features {first} to {last} of {tensor} belong to place "
        f"{places[known]}, the others to place {others[known]}"
    )
    return "MISALIGNED", evidence


def _known(places: Indices, supposed: Indices) -> int | None:
    """A row whose part is another token's, where all are, as far as there are such rows.

    Of rows that are all one further, the last one's may never have been written.
    """
    away = (places - supposed)[places >= 0]
    shifted = len(away) >= _ROWS and (away == away[0]).all() and len(away) == len(places) - 1
    return int(np.argmax(places >= 0)) if shifted or (places >= 0).all() else None


def parted_heads(
    scene: Scene, tensor: str, held: tuple[Indices, Indices], heads: Indices
) -> tuple[str, str] | None:
    """Some heads of a row alone are zero, or hold another token than the rest of it.

    Args:
        scene: It.
        tensor: Whose rows.
        held: They, and the place of each by what else is known of it.
        heads: Those that are wrong.
    """
    rows, others = held
    ours, there, limit = scene.both(tensor)
    mine, there = ours[heads][:, rows], there[heads]
    if not mine.any() and there.any():
        values, right, _ = scene.both("v")
        if tensor == "k" and not values[heads][:, rows].any() and right[heads].any():
            return "ZERO-GAP", f"k and v of {named_slots(scene, rows)} are all zero"
        return (
            f"{tensor.upper()}-NOT-WRITTEN",
            f"{tensor} of {named_slots(scene, rows)} is all zero",
        )
    places = matches(mine, there, others, limit)
    if (places < 0).any():
        return None
    evidence = (
        f"slot {scene.slots[rows[0]]}: {tensor} belongs to place {places[0]} in some heads, to "
        f"place {others[0]} in the others"
    )
    return "MISALIGNED", evidence
