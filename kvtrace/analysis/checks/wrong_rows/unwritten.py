"""Rows that are visible and zero: never written, or written somewhere else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity
from kvtrace.analysis.checks.scenes.rows import Indices, finding, named_slots, supposed_inside
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.trace.dtypes import Floats


def check_unfilled_heads(scene: Scene, identity: Identity) -> Finding | None:
    """Whole kv heads that are zero in every row: more were allocated than were written."""
    seen = scene.seen
    keys, values = scene.cached.keys[:, seen], scene.cached.values[:, seen]
    empty = np.flatnonzero(((keys == 0).all((1, 2))) & ((values == 0).all((1, 2))))
    if not len(seen) or not 0 < len(empty) < len(keys):
        return None
    if (scene.reference.keys[empty] == 0).all():
        return None
    evidence = f"kv heads {empty.tolist()} of {len(keys)} are zero in every row"
    return finding(scene, "KV-HEADS", "k", evidence, seen)


def check_zero_rows(scene: Scene, identity: Identity) -> Finding | None:
    """Rows that are visible and were never written."""
    seen = scene.seen
    key, value = identity.key_is_zero[seen], identity.value_is_zero[seen]
    key &= ~_reference_zero(scene, seen, scene.reference.keys)
    value &= ~_reference_zero(scene, seen, scene.reference.values)
    both = seen[key & value]
    if not len(both):
        apart = _written_apart(scene, identity, seen[key | value])
        if apart is not None:
            return apart
        for name, tensor, zero in (("K-NOT-WRITTEN", "k", key), ("V-NOT-WRITTEN", "v", value)):
            if zero.any():
                rows = seen[zero]
                evidence = f"{tensor} of {named_slots(scene, rows)} is all zero, the other is not"
                return finding(scene, name, tensor, evidence, rows)
        return None
    newest = int(scene.places[scene.live[-1]])
    written = np.flatnonzero((identity.by_key == newest) & (identity.by_value == newest))
    if len(written) and newest in scene.slots[both]:
        return _misplaced(scene, int(written[0]), both, newest)
    if newest in scene.supposed[both]:
        evidence = f"the slot of place {newest} is zero, and no other that is seen holds its row"
        return finding(scene, "WRITE-POSITION", "k", evidence, both)
    after = scene.slots[both].min() > scene.slots[seen[~(key & value)]].max(initial=-1)
    name = "ZERO-ROWS-VISIBLE" if after else "ZERO-GAP"
    are = "row is" if len(both) == 1 else "rows are"
    evidence = f"{len(both)} all-zero {are} visible, {named_slots(scene, both)}"
    return finding(scene, name, "k", evidence, both)


def _written_apart(scene: Scene, identity: Identity, half: Indices) -> Finding | None:
    """A row of which one half is zero, and that half stands in another slot."""
    for row in half.tolist():
        place = identity.place[row]
        for tensor, found in (("k", identity.by_key), ("v", identity.by_value)):
            there = np.flatnonzero((found == place) & (np.arange(len(found)) != row))
            if found[row] < 0 <= place and len(there):
                evidence = (
                    f"{tensor} of place {place} stands in slot {scene.slots[there[0]]}, "
                    f"the other half in slot {scene.slots[row]}"
                )
                return finding(scene, "MISALIGNED", tensor, evidence, there)
    return None


def _misplaced(scene: Scene, row: int, zero: Indices, newest: int) -> Finding:
    slot = int(scene.slots[row])
    evidence = (
        f"the row of place {newest} stands in slot {slot}, {named_slots(scene, zero)} is still zero"
    )
    return finding(scene, "WRITE-POSITION", "k", evidence, np.array([row]))


def _reference_zero(scene: Scene, rows: Indices, reference: Floats) -> NDArray[np.bool_]:
    """Rows that are zero without the cache too."""
    inside = supposed_inside(scene, rows)
    out = np.zeros(len(rows), bool)
    out[inside] = (reference[:, scene.supposed[rows[inside]]] == 0).all(axis=(0, 2))
    return out
