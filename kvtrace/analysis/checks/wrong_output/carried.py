"""Whether an output follows from rows that are right within rounding.

Scores are sums of many products, and a softmax is steep where they are large: rows that differ by
little may be mixed to something else. What comes out then is right for what went in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.trace import Step, Trace
from kvtrace.trace.dtypes import Floats


def carried(
    trace: Trace, step: Step, layer: int, sequences: Sequence[int], lane: str, limits: Noise
) -> bool:
    """Whether the output of a site follows from what it was given, in all of these sequences."""
    tolerance = limits.tolerance(layer)
    scenes = (stage(trace, step.number, layer, one, tolerance, lane) for one in sequences)
    return all(scene is not None and follows(scene) for scene in scenes)


def follows(scene: Scene) -> bool:
    """Whether the rules of the other lane make the output of the rows as they were attended.

    Each head is held against its own largest number: what is rounding of a loud one would hide all
    that a quiet one says. Most of the difference must be explained, and the rules must be known:
    they make what came out in the other lane, too. Rows that are equal explain no difference.
    """
    made, live = scene.made(), scene.live
    if made is None or made[0].shape != scene.cached.output.shape:
        return False
    outputs = [one.output[:, live] for one in (scene.cached, scene.reference)]
    mixed = [one[:, live] for one in made]
    share = scene.atol.output / max(_largest(outputs[1]).max(initial=0.0), 1e-30)
    apart = _largest(outputs[0] - outputs[1])
    if not (apart > share * _largest(outputs[1]) / 2).any():
        return False
    for output, right in zip(outputs, mixed, strict=True):
        rounding = share * _largest(output)
        if not (_largest(output - right) <= np.clip(apart / 3, rounding / 4, rounding)).all():
            return False
    return True


def _largest(rows: Floats) -> Floats:
    """Of each head, [heads]."""
    return np.asarray(np.abs(rows).max(axis=(1, 2), initial=0.0), np.float32)
