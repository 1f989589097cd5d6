"""What attention did to its scores, supposing that what went into its layer had been right.

Behind the first divergence every query and new row differs. What comes out of them by the rules of
the other lane is known all the same: where something else came out, the scores have a cause of
their own.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import identify
from kvtrace.analysis.checks.scenes.relations import close
from kvtrace.analysis.checks.scenes.scene import Scene, Side
from kvtrace.analysis.checks.wrong_output.arithmetic import check_arithmetic
from kvtrace.trace import Reference, Site, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.weights import derive, mix


def scores_of_its_own(trace: Trace, scene: Scene, lane: str) -> Finding | None:
    """A cause in the arithmetic of a layer whose input differs; None without, or if not known.

    Args:
        trace: Whose scene.
        scene: Of a self-attention; its old rows are the right ones.
        lane: The reference.
    """
    reference = trace.reference(scene.step, scene.sequence, lane)
    right, cached = scene.reference, scene.cached
    if (
        reference is None
        or scene.site.kind != "self"
        or cached.keys.shape[2] != right.keys.shape[2]
    ):
        return None
    reference = reference.leading(scene.site.index)
    made = _derived(scene.site, reference, right)
    if made is None or not close(made[1], right.output, scene.atol.output):
        return None  # what was recorded does not explain what came out in the other lane either
    keys, values = right.keys.copy(), right.values.copy()
    rows = np.flatnonzero(np.isin(scene.supposed, scene.places))
    for whole, mine in ((keys, cached.keys), (values, cached.values)):
        whole[:, scene.supposed[rows]] = mine[:, rows]
    supposed = replace(right, queries=cached.queries, keys=keys, values=values)
    made = _derived(scene.site, reference, supposed)
    if made is None:
        return None
    weights, output = made
    scene = replace(
        scene,
        reference=replace(supposed, output=output),
        weights=lambda row: weights[:, row],
    )
    identity = identify(scene)
    seen = scene.seen
    if (np.stack((identity.by_key, identity.by_value))[:, seen] != scene.supposed[seen]).any():
        return None
    found = check_arithmetic(scene, identity)
    return None if found is None or found.name == "UNKNOWN" else found


def _derived(site: Site, reference: Reference, side: Side) -> tuple[Floats, Floats] | None:
    """(weights, output) of the new rows, [heads, new, places] and [heads, new, value_dim]."""
    visible = reference.visible(site.index)
    if visible is None:
        return None
    made = derive(site, side.queries, side.keys, visible, reference.bias(site.index))
    return made.weights, mix(made.weights, side.values)
