"""From a scene to the first thing that explains it, in causal order.

Structure first (whose rows are these, were they ever written), then the query, then what each
row holds, who sees what, and last the arithmetic. The first that speaks wins: the rest follows
from it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity, identify
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_output.arithmetic import check_arithmetic
from kvtrace.analysis.checks.wrong_output.visibility import check_ahead, check_seen
from kvtrace.analysis.checks.wrong_rows.by_head import check_rows_of_heads, rows_of_heads
from kvtrace.analysis.checks.wrong_rows.contents import (
    check_contents,
    check_heads,
    check_misaligned,
    check_swapped,
)
from kvtrace.analysis.checks.wrong_rows.owners import check_owner, check_stale
from kvtrace.analysis.checks.wrong_rows.queries import check_queries
from kvtrace.analysis.checks.wrong_rows.unwritten import check_unfilled_heads, check_zero_rows


def check_nonfinite(scene: Scene) -> Finding | None:
    """NaN or Inf in what the cached lane consumed or made, where the reference has none."""
    live, seen = scene.live, scene.seen
    for tensor, mine, theirs in (
        ("q", scene.cached.queries[:, live], scene.reference.queries[:, live]),
        ("k", scene.cached.keys[:, seen], scene.reference.keys),
        ("v", scene.cached.values[:, seen], scene.reference.values),
        ("output", scene.cached.output[:, live], scene.reference.output[:, live]),
    ):
        bad = ~np.isfinite(mine)
        if bad.any() and np.isfinite(theirs).all():
            head, row, dim = (int(place) for place in np.argwhere(bad)[0])
            total = int(bad.sum())
            numbers = (
                f"1 number of {tensor}," if total == 1 else f"{total} numbers of {tensor}, first"
            )
            evidence = f"{numbers} in head {head}, feature {dim}"
            return Finding("NONFINITE", scene.step, scene.layer, tensor, evidence, head, row)
    return None


def diagnose(scene: Scene) -> Finding | None:
    """The first thing wrong in a scene; None when both lanes agree."""
    if not len(scene.live):
        return None
    broken = check_nonfinite(scene)
    if broken is not None:
        return broken
    identity = identify(scene)

    def first(*checks: Callable[[Scene, Identity], Finding | None]) -> Finding | None:
        told = (check(scene, identity) for check in checks)
        return next((one for one in told if one is not None), None)

    found = first(check_unfilled_heads, check_stale, check_heads) or check_queries(scene)
    found = found or first(check_owner, check_ahead, check_zero_rows, check_swapped)
    if found is not None:
        return found
    own = rows_of_heads(scene, identity)
    if own is not None:
        return check_rows_of_heads(scene, own) or check_arithmetic(scene, identity)
    return first(check_seen, check_contents, check_misaligned, check_arithmetic)
