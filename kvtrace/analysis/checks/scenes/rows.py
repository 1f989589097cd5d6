"""Rows of a scene as the checks of contents speak of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.trace.dtypes import Floats

Indices = NDArray[np.int64]


def pair(
    scene: Scene, tensor: str, rows: Indices, other: Indices | None = None
) -> tuple[Floats, Floats, float]:
    """Rows and what they should be: by the other tensor's identity, else the supposed place."""
    places = places_of(scene, rows, other)
    held, there, atol = scene.both(tensor)
    return held[:, rows], there[:, places], atol


def places_of(scene: Scene, rows: Indices, other: Indices | None) -> Indices:
    """The place that each row should be: by the other tensor's identity, else the supposed one."""
    places = scene.supposed[rows]
    return places if other is None else np.where(other[rows] >= 0, other[rows], places)


def unknown(scene: Scene, found: Indices) -> Indices:
    """Attended rows that are looked at and were not recognised."""
    seen = scene.seen
    return seen[found[seen] < 0]


def supposed_inside(scene: Scene, rows: Indices) -> NDArray[np.bool_]:
    """Whether the reference has the place that each row is supposed to hold."""
    places = scene.supposed[rows]
    return np.asarray((places >= 0) & (places < scene.reference.keys.shape[1]), np.bool_)


def named_slots(scene: Scene, rows: Indices) -> str:
    """Slots of rows, as text."""
    slots = scene.slots[rows]
    if len(slots) == 1:
        return f"slot {slots[0]}"
    if len(slots) > 3 and (np.diff(slots) == 1).all():
        return f"slots {slots[0]} to {slots[-1]}"
    more = f" and {len(slots) - 4} more" if len(slots) > 4 else ""
    return "slots " + ", ".join(map(str, slots[:4])) + more


def counted(rows: int) -> str:
    """How many rows: "1 row", "9 rows"."""
    return f"{rows} row{'' if rows == 1 else 's'}"


def finding(
    scene: Scene, name: str, tensor: str, evidence: str, rows: Indices, head: int | None = None
) -> Finding:
    """A finding about some attended rows, placed at the first."""
    return Finding(name, scene.step, scene.layer, tensor, evidence, head, int(rows[0]))


def differing(mine: Floats, theirs: Floats, atol: float) -> Indices:
    """Heads, the first axis of both, in which anything differs; all of them if none does."""
    apart = np.abs(mine - theirs) > atol
    heads = np.flatnonzero(apart.reshape(len(mine), -1).any(axis=1))
    return heads if len(heads) else np.arange(len(mine))


def differing_features(mine: Floats, theirs: Floats, atol: float) -> Indices | None:
    """Features, the last axis of both, in which anything differs; None where it is all or none."""
    apart = (np.abs(mine - theirs) > atol).any(axis=(0, 1))
    features = np.flatnonzero(apart)
    return features if 0 < len(features) < mine.shape[-1] else None


def changed_before(scene: Scene, rows: Indices) -> Indices:
    """Those of some rows whose slot changed since the step before, and not by its new tokens."""
    new = np.isin(scene.supposed[rows], scene.places)
    return rows[scene.changed[rows] & ~new]


def only_heads(heads: Indices, count: int, what: str) -> tuple[int | None, str]:
    """The first of some heads, and which they are in words; (None, "") where it is all."""
    if len(heads) == count:
        return None, ""
    several = "s" if len(heads) > 1 else ""
    return int(heads[0]), f" (only {what}{several} {', '.join(map(str, heads.tolist()))})"
