"""What is wrong at a layer whatever its input was: causes beside the first one.

Behind the first divergence every query and every new row differs. The rows that were cached before
it don't, and neither does which rows a query sees: what is wrong with those has a cause of its own.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.classes import VAGUE_ROWS
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import identify
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_output.visibility import check_ahead, check_seen
from kvtrace.analysis.checks.wrong_rows.contents import (
    check_contents,
    check_heads,
    check_swapped,
    check_values,
)
from kvtrace.analysis.checks.wrong_rows.owners import check_owner
from kvtrace.analysis.checks.wrong_rows.unwritten import check_unfilled_heads, check_zero_rows

_HELD = (
    *("DTYPE", "OLD-ROWS-SCALED", "OLD-ROWS-CHANGED", "CONTENT", "HEAD-MAP"),
    *("POSITION-ROPE-K", "KEYS-NOT-ROTATED", "KEYS-ROTATED-AGAIN"),
)
"""What rows hold, with nothing said of whose they are."""


def diagnose_apart(scene: Scene) -> Finding | None:
    """The first thing that the input of the layer does not explain; None when there is none."""
    if not len(scene.live):
        return None
    scene = _with_right_new_rows(scene)
    identity = identify(scene)
    for check in (
        check_unfilled_heads,
        check_heads,
        check_owner,
        check_ahead,
        check_zero_rows,
        check_swapped,
        check_seen,
        check_contents,
    ):
        found = check(scene, identity)
        if found is not None:
            return None if found.name in VAGUE_ROWS else found
    return None


def diagnose_same(scene: Scene, first: Finding) -> Finding | None:
    """Another cause at the very site of the first one, where neither explains the other.

    Which rows are hidden says nothing of what the others hold, and keys nothing of values.

    Args:
        scene: Of the first finding.
        first: It.
    """
    identity, found = identify(scene), None
    if first.tensor == "mask" or first.name == "MASK":
        found = check_contents(scene, identity)
    elif first.tensor == "k" and first.name in _HELD:
        found = check_values(scene, identity)
    return None if found is None or found.name in VAGUE_ROWS else found


def _with_right_new_rows(scene: Scene) -> Scene:
    """The scene as if the rows of this step, where they were written, were the right ones."""
    new = np.isin(scene.supposed, scene.places)
    rows, places = np.flatnonzero(new), scene.supposed[new]
    cached, right = scene.cached, scene.reference
    if not len(rows) or cached.keys.shape[::2] != right.keys.shape[::2]:
        return scene
    keys, values = cached.keys.copy(), cached.values.copy()
    for held, theirs in ((keys, right.keys), (values, right.values)):
        written = (held[:, rows] != 0).any(axis=(0, 2))
        held[:, rows[written]] = theirs[:, places[written]]
    return replace(scene, cached=replace(cached, keys=keys, values=values))
