"""What attended rows hold that are none of the recomputed: swapped, scaled, rotated, rounded."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.classes import VAGUE_ROWS
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity, matches
from kvtrace.analysis.checks.scenes.relations import (
    factor,
    factors,
    head_order,
    moved,
    same_numbers,
)
from kvtrace.analysis.checks.scenes.rows import (
    Indices,
    changed_before,
    counted,
    differing,
    differing_features,
    finding,
    named_slots,
    only_heads,
    pair,
    places_of,
    supposed_inside,
    unknown,
)
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_rows.inexact import inexact
from kvtrace.analysis.checks.wrong_rows.partly_right import parted_features, parted_heads
from kvtrace.analysis.checks.wrong_rows.rotated_keys import rotated
from kvtrace.analysis.checks.wrong_rows.turned import rotation
from kvtrace.trace.dtypes import Floats

_PLANES = 4
"""So many are not turned by chance."""

_SHARE = 0.02
"""Of the largest number, that values in place of keys may be off by from a common factor."""

_NUMBERS = 16
"""So many are not by chance the same in another order."""


def check_heads(scene: Scene, identity: Identity) -> Finding | None:
    """Heads of K or V in another order: looked for first, since else every row looks wrong."""
    return _heads(scene, "k", identity.by_key) or _heads(scene, "v", identity.by_value)


def _heads(scene: Scene, tensor: str, found: Indices) -> Finding | None:
    """The same of keys or values alone."""
    rows = unknown(scene, found)
    rows = rows[supposed_inside(scene, rows)]
    if not len(rows):
        return None
    mine, theirs, atol = pair(scene, tensor, rows)
    order = head_order(mine, theirs, atol)
    if order is None:
        return None
    evidence = f"kv heads {list(order)} of {tensor} stand where 0, 1, 2 … should"
    return finding(scene, "HEAD-MAP", tensor, evidence, rows)


def check_swapped(scene: Scene, identity: Identity) -> Finding | None:
    """Keys that are the reference's values, or values that are its keys."""
    mine, right, atol = scene.cached, scene.reference, scene.atol
    if mine.keys.shape[2] != right.values.shape[2]:
        return None
    for tensor, other, held, there, limit, known in (
        ("k", "v", mine.keys, right.values, atol.values, identity.by_key),
        ("v", "k", mine.values, right.keys, atol.keys, identity.by_value),
    ):
        rows = unknown(scene, known)
        if not len(rows):
            continue
        found = matches(held[:, rows], there, scene.supposed[rows], limit)
        if (found < 0).all() and supposed_inside(scene, rows).all():
            both = held[:, rows], there[:, scene.supposed[rows]]
            # what comes instead is scaled, or rotated, as the right ones are
            own = factor(*pair(scene, tensor, rows)[:2], limit)
            fine = min(limit, _SHARE * float(np.abs(both[0]).max()))  # wide limits fit any factor
            times, turn = factor(*both, fine) if own is None else None, rotation(*both, limit)
            turned = turn is not None and len(turn.angles[0]) >= _PLANES
            if turned or times is not None:
                how = "rotated" if turned else f"{times:.4g} ×"
                evidence = f"{counted(len(rows))} of {tensor}: the recomputed {other}, but {how}"
                return finding(scene, "KEYS-VALUES-SWAPPED", tensor, evidence, rows)
        if (found >= 0).all():
            evidence = f"{counted(len(rows))} of {tensor} = the recomputed {other}"
            return finding(scene, "KEYS-VALUES-SWAPPED", tensor, evidence, rows)
    return None


def check_misaligned(scene: Scene, identity: Identity) -> Finding | None:
    """K and V of one slot that belong to different tokens."""
    seen = scene.seen
    key, value = identity.by_key[seen], identity.by_value[seen]
    apart = seen[(key >= 0) & (value >= 0) & (key != value)]
    if not len(apart):
        return None
    row = int(apart[0])
    tensor = "v" if identity.by_key[row] == scene.supposed[row] else "k"
    evidence = (
        f"slot {scene.slots[row]}: k belongs to place {identity.by_key[row]}, "
        f"v to place {identity.by_value[row]}"
    )
    return finding(scene, "MISALIGNED", tensor, evidence, apart)


def check_contents(scene: Scene, identity: Identity) -> Finding | None:
    """Rows that match no reference row: how are they related to the right one?"""
    first = _contents(scene, identity, "k")
    if first is None or first.name != "DTYPE":
        return first or _contents(scene, identity, "v")
    # rounding is often meant: what is wrong with the values beside it is not
    worse = _contents(scene, identity, "v")
    if worse is None or worse.name in ("DTYPE", *VAGUE_ROWS):
        return first
    return replace(worse, evidence=f"{worse.evidence}; besides, {first.evidence} (DTYPE)")


def check_values(scene: Scene, identity: Identity) -> Finding | None:
    """The same of values alone, their heads too."""
    return _heads(scene, "v", identity.by_value) or _contents(scene, identity, "v")


def _contents(scene: Scene, identity: Identity, tensor: str) -> Finding | None:
    """The same of keys or values alone."""
    known = identity.by_key, identity.by_value
    found, other = known if tensor == "k" else known[::-1]
    rows = unknown(scene, found)
    inside = rows[supposed_inside(scene, rows)]
    if len(inside):
        return _not_written(scene, tensor, inside) or _related(scene, tensor, inside, other)
    if len(rows):
        evidence = f"{tensor} of {named_slots(scene, rows)} matches no recomputed row"
        return finding(scene, "CONTENT", tensor, evidence, rows)
    return None


def _not_written(scene: Scene, tensor: str, rows: Indices) -> Finding | None:
    """New rows of which one half is what their slots held before: the other half was written."""
    half = scene.half.get(tensor)
    if half is None or not (half[rows] & np.isin(scene.supposed[rows], scene.places)).all():
        return None
    evidence = f"{tensor} of {named_slots(scene, rows)} is what it was before, the other is new"
    return finding(scene, f"{tensor.upper()}-NOT-WRITTEN", tensor, evidence, rows)


def _related(scene: Scene, tensor: str, rows: Indices, other: Indices) -> Finding:
    mine, theirs, atol = pair(scene, tensor, rows, other)
    old = changed_before(scene, rows)
    heads = differing(mine, theirs, atol)
    head, which = only_heads(heads, len(mine), "kv head")
    mine, theirs = mine[heads], theirs[heads]
    part = differing_features(mine, theirs, atol)

    def found(name: str, evidence: str) -> Finding:
        return finding(scene, name, tensor, evidence + which, rows, head)

    size = float(np.abs(theirs).max())
    held = rows, places_of(scene, rows, other)
    known = None if head is None else parted_heads(scene, tensor, held, heads)
    known = known or inexact(tensor, mine, theirs, size, atol)
    if known is None and part is not None:
        known = inexact(tensor, mine[..., part], theirs[..., part], size, atol)
        known = known or parted_features(scene, tensor, held, (heads, part))
    if known is not None:
        return found(*known)
    s = factor(mine, theirs, atol)
    turned = rotated(scene, rows, mine, theirs, atol) if tensor == "k" and s is None else None
    if turned is not None:
        return found(*turned)
    each = (s, "") if s is not None else factors(mine, theirs, atol)
    if each is not None:
        own = f", each {each[1]} by a factor of its own" if each[1] else ""
        evidence = f"{counted(len(rows))} of {tensor} = {each[0]:.4g} × the recomputed ones{own}"
        return found("OLD-ROWS-SCALED", evidence)
    rearranged = _rearranged(scene, tensor, rows, (mine, theirs), atol)
    if rearranged is not None:
        return found("HEAD-RESHAPE", rearranged)
    far, how = float(np.abs(mine - theirs).max()), moved(mine, theirs, atol)
    if len(old):
        evidence = f"{named_slots(scene, old)} changed since the step before, by up to {far:.3g}"
        return found("OLD-ROWS-CHANGED", evidence + how)
    evidence = f"{tensor} of {named_slots(scene, rows)} is off by up to {far:.3g} of {size:.3g}"
    return found("CONTENT", evidence + how)


def _rearranged(
    scene: Scene, tensor: str, rows: Indices, both: tuple[Floats, Floats], atol: float
) -> str | None:
    """In words, that rows hold the right numbers in another arrangement; None where they don't."""
    # few numbers may be the same ones by chance
    if both[1].size >= _NUMBERS and same_numbers(*both, atol):
        return f"{tensor} holds the same numbers in another arrangement"
    keys, right_keys, near = pair(scene, "k", rows)
    values, right_values, other = pair(scene, "v", rows)
    if keys.shape != right_keys.shape or values.shape != right_values.shape:
        return None
    mine = np.concatenate((keys.ravel(), values.ravel()))
    right = np.concatenate((right_keys.ravel(), right_values.ravel()))
    if mine.size < _NUMBERS or not same_numbers(mine, right, min(near, other)):
        return None
    return (
        "k and v together hold the same numbers, shared out otherwise: one tensor of both is split "
        "or viewed wrongly"
    )
