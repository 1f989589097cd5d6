"""What the attended rows hold: zero, swapped, scaled, rotated, rounded, somebody else's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.identify import Identity, matches
from kvtrace.analysis.checks.relations import (
    factor,
    head_order,
    rotation,
    rounded_to,
    same_numbers,
    shift,
    slope,
)
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scene import Scene
from kvtrace.trace.dtypes import Floats

Indices = NDArray[np.int64]


def check_heads(scene: Scene, identity: Identity) -> Finding | None:
    """Heads of K or V in another order: looked for first, since else every row looks wrong."""
    for tensor, found in (("k", identity.by_key), ("v", identity.by_value)):
        rows = _unknown(scene, found)
        rows = rows[_supposed_inside(scene, rows)]
        if not len(rows):
            continue
        mine, theirs, atol = _pair(scene, tensor, rows)
        order = head_order(mine, theirs, atol)
        if order is not None:
            evidence = f"kv heads {list(order)} of {tensor} stand where 0, 1, 2 … should"
            return _found(scene, "HEAD-MAP", tensor, evidence, rows)
    return None


def check_zero_rows(scene: Scene, identity: Identity) -> Finding | None:
    """Rows that are visible and were never written."""
    seen = scene.seen
    key, value = identity.key_is_zero[seen], identity.value_is_zero[seen]
    key &= ~_reference_zero(scene, seen, scene.reference.keys)
    value &= ~_reference_zero(scene, seen, scene.reference.values)
    both = seen[key & value]
    if not len(both):
        for name, tensor, zero in (("K-NOT-WRITTEN", "k", key), ("V-NOT-WRITTEN", "v", value)):
            if zero.any():
                rows = seen[zero]
                evidence = f"{tensor} of {_slots(scene, rows)} is all zero, the other is not"
                return _found(scene, name, tensor, evidence, rows)
        return None
    newest = int(scene.places[scene.live[-1]])
    written = [int(row) for row in seen if identity.place[row] == newest]
    if written and newest in scene.slots[both]:
        return _misplaced(scene, written[0], both, newest)
    after = scene.slots[both].min() > scene.slots[seen[~(key & value)]].max(initial=-1)
    name = "ZERO-ROWS-VISIBLE" if after else "ZERO-GAP"
    evidence = f"{len(both)} all-zero rows are visible, {_slots(scene, both)}"
    return _found(scene, name, "k", evidence, both)


def _misplaced(scene: Scene, row: int, zero: Indices, newest: int) -> Finding:
    slot = int(scene.slots[row])
    evidence = (
        f"the row of place {newest} stands in slot {slot}, {_slots(scene, zero)} is still zero"
    )
    return _found(scene, "WRITE-POSITION", "k", evidence, np.array([row]))


def check_swapped(scene: Scene, identity: Identity) -> Finding | None:
    """Keys that are the reference's values."""
    rows = _unknown(scene, identity.by_key)
    if not len(rows) or scene.cached.keys.shape[2] != scene.reference.values.shape[2]:
        return None
    supposed = scene.supposed[rows]
    found = matches(scene.cached.keys[:, rows], scene.reference.values, supposed, scene.atol.values)
    if (found < 0).any():
        return None
    evidence = f"{len(rows)} rows of k equal the recomputed v"
    return _found(scene, "KEYS-VALUES-SWAPPED", "k", evidence, rows)


def check_misaligned(scene: Scene, identity: Identity) -> Finding | None:
    """K and V of one slot that belong to different tokens."""
    seen = scene.seen
    key, value = identity.by_key[seen], identity.by_value[seen]
    apart = seen[(key >= 0) & (value >= 0) & (key != value)]
    if not len(apart):
        return None
    row = int(apart[0])
    evidence = (
        f"slot {scene.slots[row]}: k belongs to place {identity.by_key[row]}, "
        f"v to place {identity.by_value[row]}"
    )
    return _found(scene, "MISALIGNED", "k", evidence, apart)


def check_owner(scene: Scene, identity: Identity) -> Finding | None:
    """Rows of another layer, or of another sequence."""
    rows = _unknown(scene, identity.by_key)
    if not len(rows):
        return None
    keys, supposed = scene.cached.keys[:, rows], scene.supposed[rows]
    for name, what, own, count, get in (
        ("WRONG-BATCH-ROW", "sequence", scene.sequence, scene.sequences, scene.sequence_rows),
        ("WRONG-LAYER", "layer", scene.layer, scene.layers, scene.layer_rows),
    ):
        for other in range(count):
            there = None if other == own else get(other)
            if there is None:
                continue
            found = matches(keys, there[0], supposed, scene.atol.keys)
            if (found >= 0).mean() > 0.5:
                known = rows[found >= 0]
                evidence = (
                    f"{len(known)} of {len(rows)} unexpected rows are those of {what} {other}"
                )
                return _found(scene, name, "k", evidence, known)
    return None


def check_stale(scene: Scene, identity: Identity) -> Finding | None:
    """The first step sees more rows than its own tokens."""
    if not scene.first_step:
        return None
    seen = scene.seen
    foreign = seen[identity.place[seen] < 0]
    own = np.flatnonzero(identity.place >= 0)
    more = len(seen) > len(scene.wanted)
    hidden = len(own) and not np.isin(own, seen).any() and len(foreign)
    if not len(foreign) or identity.key_is_zero[foreign].any() or not (more or hidden):
        return None
    of_others = check_owner(scene, identity)
    if of_others is not None:
        return of_others
    evidence = f"{len(foreign)} rows that are no token of this prompt, {_slots(scene, foreign)}"
    return _found(scene, "STALE-CACHE", "k", evidence, foreign)


def check_contents(scene: Scene, identity: Identity) -> Finding | None:
    """Rows that match no reference row: how are they related to the right one?"""
    for tensor, found in (("k", identity.by_key), ("v", identity.by_value)):
        rows = _unknown(scene, found)
        other = identity.by_value if tensor == "k" else identity.by_key
        inside = rows[_supposed_inside(scene, rows)]
        if len(inside):
            return _related(scene, tensor, inside, other)
        if len(rows):
            evidence = f"{tensor} of {_slots(scene, rows)} matches no recomputed row"
            return _found(scene, "CONTENT", tensor, evidence, rows)
    return None


def _related(scene: Scene, tensor: str, rows: Indices, other: Indices) -> Finding:
    mine, theirs, atol = _pair(scene, tensor, rows, other)
    changed = bool(scene.changed[rows].any())

    def found(name: str, evidence: str) -> Finding:
        return _found(scene, name, tensor, evidence, rows)

    smaller = rounded_to(mine, theirs)
    size = float(np.abs(theirs).max())
    if smaller and float(np.abs(mine - theirs).max()) < 0.2 * size:
        return found("DTYPE", f"every number of {len(rows)} rows of {tensor} fits in {smaller}")
    if tensor == "k":
        turned = _turned(scene, rows, mine, theirs, atol)
        if turned is not None:
            return found(*turned)
    s = factor(mine, theirs, atol) or _row_factor(mine, theirs, atol)
    if s is not None:
        evidence = f"{len(rows)} rows of {tensor} = {s:.4g} × the recomputed ones"
        return found("OLD-ROWS-SCALED", evidence)
    if len(rows) > 1 and same_numbers(mine, theirs, atol):
        return found("HEAD-RESHAPE", f"{tensor} holds the same numbers in another arrangement")
    far = float(np.abs(mine - theirs).max())
    if changed:
        held = rows[scene.changed[rows]]
        evidence = f"{_slots(scene, held)} changed since the step before, by up to {far:.3g}"
        return found("OLD-ROWS-CHANGED", evidence)
    evidence = f"{tensor} of {_slots(scene, rows)} is off by up to {far:.3g} of {size:.3g}"
    return found("CONTENT", evidence)


def _turned(
    scene: Scene, rows: Indices, mine: Floats, theirs: Floats, atol: float
) -> tuple[str, str] | None:
    """Keys that are rotated: by the same for all, or in proportion to their position."""
    turn = rotation(mine, theirs, atol)
    if turn is None:
        return None
    places = scene.supposed[rows] - scene.padding
    old = bool(scene.changed[rows].any())
    rate = slope(turn, places)
    if rate is not None and (len(rows) > 1 or places[0] == 0):
        return _in_proportion(len(rows), float(rate[0]), old)
    n = shift(turn, int(scene.reference.keys.shape[1]) + 64)
    by = "by angles that vary" if n is None else f"by {n:+d} positions"
    if old:
        return "KEYS-ROTATED-AGAIN", f"{len(rows)} old rows are rotated {by} more"
    if n is not None and n == -int(places[0]) and not _others_turned(scene, rows) and n < -1:
        return "KEYS-NOT-ROTATED", f"k of place {places[0]} is rotated {by}"
    return "POSITION-ROPE-K", f"k of {len(rows)} rows is rotated {by}, q is right"


def _others_turned(scene: Scene, rows: Indices) -> bool:
    """Whether rows beside these are seen, beyond the first, whose rotation is none."""
    others = np.setdiff1d(scene.seen, rows)
    return bool((scene.supposed[others] > scene.padding).any())


def _in_proportion(rows: int, rate: float, old: bool) -> tuple[str, str]:
    """Row p is rotated by rate·p in the fastest plane, whose right rate is about 1."""
    if old and rate > 0.5:
        return "KEYS-ROTATED-AGAIN", f"row p of {rows} old rows is rotated by +p"
    if abs(rate) > 0.5:
        evidence = f"row p of {rows} rows is the recomputed one rotated by {rate:+.2g}·p"
        return "KEYS-NOT-ROTATED", evidence
    return (
        "LENGTH-DEPENDENT-POSITIONS",
        f"k of {rows} rows is rotated in proportion to its position, with other frequencies "
        f"than the recomputed one (plane 0: {rate:+.2g} radians a position)",
    )


def _row_factor(mine: Floats, theirs: Floats, atol: float) -> float | None:
    """A factor of its own for every row, such as a lost quantisation scale: the first one."""
    factors = [factor(mine[:, n], theirs[:, n], atol) for n in range(mine.shape[1])]
    return factors[0] if factors and all(one is not None for one in factors) else None


def _pair(
    scene: Scene, tensor: str, rows: Indices, other: Indices | None = None
) -> tuple[Floats, Floats, float]:
    """Rows and what they should be: by the other tensor's identity, else the supposed place."""
    places = scene.supposed[rows]
    if other is not None:
        places = np.where(other[rows] >= 0, other[rows], places)
    if tensor == "k":
        return scene.cached.keys[:, rows], scene.reference.keys[:, places], scene.atol.keys
    return scene.cached.values[:, rows], scene.reference.values[:, places], scene.atol.values


def _unknown(scene: Scene, found: Indices) -> Indices:
    """Attended rows that are looked at and were not recognised."""
    seen = scene.seen
    return seen[found[seen] < 0]


def _supposed_inside(scene: Scene, rows: Indices) -> NDArray[np.bool_]:
    places = scene.supposed[rows]
    return np.asarray((places >= 0) & (places < scene.reference.keys.shape[1]), np.bool_)


def _reference_zero(scene: Scene, rows: Indices, reference: Floats) -> NDArray[np.bool_]:
    """Rows that are zero without the cache too."""
    inside = _supposed_inside(scene, rows)
    out = np.zeros(len(rows), bool)
    out[inside] = (reference[:, scene.supposed[rows[inside]]] == 0).all(axis=(0, 2))
    return out


def _slots(scene: Scene, rows: Indices) -> str:
    """Slots of rows, as text."""
    slots = scene.slots[rows]
    if len(slots) == 1:
        return f"slot {slots[0]}"
    if len(slots) > 3 and (np.diff(slots) == 1).all():
        return f"slots {slots[0]} to {slots[-1]}"
    more = f" and {len(slots) - 4} more" if len(slots) > 4 else ""
    return "slots " + ", ".join(map(str, slots[:4])) + more


def _found(scene: Scene, name: str, tensor: str, evidence: str, rows: Indices) -> Finding:
    return Finding(name, scene.step, scene.layer, tensor, evidence, row=int(rows[0]))
