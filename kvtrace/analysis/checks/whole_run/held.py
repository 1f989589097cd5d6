"""Rows that a cache of few bits holds, against what the very rows were in the step before.

Behind the first layer of such a cache every input differs, by more than many a bug. What a layer
was given itself is known however that came about: what it reads back is held against it.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.placed import named, placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.scene import Scales, Scene
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.errors import TraceError
from kvtrace.trace import Step, Trace
from kvtrace.trace.dtypes import Floats

_ROWS = ("k", "v")


def otherwise_than_held(trace: Trace, step: Step, lane: str, limits: Noise) -> Finding | None:
    """The first layer that reads back other rows than it held, by more than its rounding.

    Args:
        trace: Whose step.
        step: It; where rows were moved, as with beams, none is known to be the same.
        lane: The reference, which says which row is which token's.
        limits: What rounding of the cache moves rows by.
    """
    if limits.held is None or step.parent is None or step.events:
        return None
    before = trace.step(step.parent)
    if before.num_sequences != step.num_sequences:
        return None
    for site in sorted(set(step.attending), key=lambda one: trace.site(one).layer):
        tolerance = float(limits.held[site])
        if tolerance >= 1 or trace.site(site).kind != "self" or site not in before.attending:
            continue
        for sequence in range(step.num_sequences):
            scene = _against_before(trace, step, site, sequence, tolerance, lane)
            found = None if scene is None else named(diagnose, scene)
            if found is not None and found.tensor in _ROWS and scene is not None:
                whose = (sequence,) if step.num_sequences > 1 else ()
                said = found.evidence.replace("recomputed", "earlier")
                evidence = f"beside the rows that it read in step {step.parent}: {said}"
                found = replace(found, evidence=evidence, sequences=whose)
                apart = _apart(scene, found.tensor) * tolerance
                found = placed(trace, found, limits, lane, sequence)
                return replace(found, apart=apart, limit=tolerance)
    return None


def _apart(scene: Scene, tensor: str) -> float:
    """How far rows are from what they were, over what rounding explains."""
    rows = scene.seen[_inside(scene, scene.supposed[scene.seen])]
    mine, right, atol = scene.both(tensor)
    apart = np.abs(mine[:, rows] - right[:, scene.supposed[rows]])
    return float(apart.max(initial=0.0)) / atol


def _against_before(
    trace: Trace, step: Step, site: int, sequence: int, tolerance: float, lane: str
) -> Scene | None:
    """A scene whose right rows are those that the layer held in the step before.

    Its new rows, its queries and its output are taken to be right.
    """
    scene = stage(trace, step.number, site, sequence, tolerance, lane)
    right = None if scene is None else _held(trace, step, site, sequence, lane)
    if scene is None or right is None:
        return None
    keys, values = right
    new = np.flatnonzero(np.isin(scene.supposed, scene.places))
    keys[:, scene.supposed[new]] = scene.cached.keys[:, new]
    values[:, scene.supposed[new]] = scene.cached.values[:, new]
    mine = scene.cached
    side = replace(
        scene.reference, queries=mine.queries, output=mine.output, keys=keys, values=values
    )
    return replace(
        scene,
        reference=side,
        atol=Scales.of(side, tolerance),
        layer_rows=lambda other: _held(trace, step, other, sequence, lane),
        sequence_rows=lambda other: _held(trace, step, site, other, lane),
    )


def _held(
    trace: Trace, step: Step, site: int, sequence: int, lane: str
) -> tuple[Floats, Floats] | None:
    """Keys and values by place, those of earlier tokens as the step before read them.

    Those it did not read are the lane's. None where nothing is known of them.
    """
    try:
        now = stage(trace, step.number, site, sequence, 0.0, lane)
        before = stage(trace, step.parent or 0, site, sequence, 0.0, lane)
    except (TraceError, LookupError):
        return None
    if now is None or before is None:
        return None
    out = []
    for tensor in _ROWS:
        held, right = before.both(tensor)[0], now.both(tensor)[1].copy()
        known = np.flatnonzero(_inside(now, before.supposed))
        if held.shape[::2] != right.shape[::2] or not len(known):
            return None
        right[:, before.supposed[known]] = held[:, known]
        out.append(right)
    return out[0], out[1]


def _inside(scene: Scene, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which places the reference has."""
    return np.asarray((places >= 0) & (places < scene.reference.keys.shape[1]), np.bool_)
