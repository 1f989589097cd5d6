"""Caches that keep few bits of every row, all alike: that is meant, what else differs is not.

A cache that quantises what it is given hands back rounded rows from the first step on, in all
layers. Whatever else is wrong with it shows by more than that rounding, which a first step that has
nothing else to be wrong measures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvtrace.analysis.checks.noise import TIMES_REFEREE, Noise, largest
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.rows import pair, supposed_inside
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.analysis.checks.wrong_rows.levels import quantised
from kvtrace.trace import Step, Tensor, Trace

_MOST = 0.35
"""Of the largest number: rows that rounding moves by more are those of something else."""

_LAYERS_DEEP = 4

_TIMES_SEEN = 4.0
"""What the outputs of later steps are off by, at most, of what those of the first one are."""

_SHARPEST = 16.0
"""The most that outputs are off by, of what their rows are; more has another cause."""

Bits = dict[str, tuple[int, str]]
"""Of keys and values, as far as they are quantised: bits, and of what a group is made."""


def in_few_bits(trace: Trace, lane: str, limits: Noise) -> tuple[Finding, Noise] | None:
    """Rounding by a whole cache, and what counts as rounding beside it; None where there is none.

    Args:
        trace: Its first step is looked at, whose rows no step before it can have changed.
        lane: The reference.
        limits: What would be rounding without it.
    """
    step = trace.step(trace.numbers[0])
    compared = trace.compared(step.number, lane)
    sites = [site for group in step.sites for site in group.sites]
    if step.parent is not None or compared is None or not sites:
        return None
    if any(trace.site(site).kind != "self" for site in sites):
        return None
    sites.sort(key=lambda site: trace.site(site).layer)
    top = largest(compared, len(limits.threshold))
    first, rows = sites[0], [Tensor.KEYS, Tensor.VALUES]
    beyond = top[first] > limits.threshold[first]
    if beyond[Tensor.QUERIES] or not beyond[rows].any():
        return None
    moved = float(np.nanmax(top[first][rows]))
    bits = _bits(trace, step, first, lane, limits)
    if not _explain(bits, moved, beyond):
        return None
    if any(_bits(trace, step, site, lane, limits) != bits for site in sites[1:]):
        return None
    return _said(trace, step, first, bits, moved), _raised(trace, limits, moved, top)


def _explain(bits: Bits, moved: float, beyond: np.ndarray) -> bool:
    """Whether so few bits move rows by as much, and every tensor that differs has them."""
    differ = {name for name, tensor in (("k", Tensor.KEYS), ("v", Tensor.VALUES)) if beyond[tensor]}
    if not bits or not differ <= set(bits):
        return False
    fewest = min(count for count, _ in bits.values())
    return moved <= min(_MOST, 1 / max((1 << fewest - 1) - 1, 1))


def _bits(trace: Trace, step: Step, site: int, lane: str, limits: Noise) -> Bits:
    """In how few bits the keys and values of a site are, in all sequences; empty: in none."""
    found: list[Bits] = []
    for sequence in range(step.num_sequences):
        tolerance = float(limits.threshold[site].max())
        scene = stage(trace, step.number, site, sequence, tolerance, lane)
        found.append({} if scene is None else _of(scene))
    return found[0] if all(one == found[0] for one in found) else {}


def _of(scene: Scene) -> Bits:
    """The same of one sequence."""
    rows = scene.seen
    if not len(rows) or not supposed_inside(scene, rows).all():
        return {}
    out: Bits = {}
    for name in ("k", "v"):
        mine, right, _ = pair(scene, name, rows)
        grid = quantised(mine, right) if mine.shape == right.shape else None
        if grid is not None:
            out[name] = grid
    return out


def _said(trace: Trace, step: Step, site: int, bits: Bits, moved: float) -> Finding:
    tensor = next(iter(bits))
    counts = " and ".join(f"{name} of {count} bits" for name, (count, _) in bits.items())
    evidence = (
        f"all rows of all layers take evenly spaced values in each {bits[tensor][1]}: {counts}. "
        f"That moves them by {moved:.1e} of the largest; only more than "
        f"{TIMES_REFEREE:.0f} times that is told besides"
    )
    return Finding("DTYPE", step.number, site, tensor, evidence, meant=True)


def _raised(trace: Trace, limits: Noise, moved: float, top: np.ndarray) -> Noise:
    """What is rounding where rows are moved by as much; sharp weights make more of it."""
    layers = np.array([site.layer for site in trace.meta.sites])
    far = TIMES_REFEREE * moved * np.maximum(1.0, (layers + 1) / _LAYERS_DEEP)
    sharp = np.nanmax(top[:, Tensor.OUTPUT], initial=0.0) * _TIMES_SEEN
    threshold = np.fmax(limits.threshold, far[:, None])
    follows = np.repeat((layers > layers.min())[:, None], 4, axis=1)
    follows[:, Tensor.OUTPUT] = True
    made = np.where(follows, min(sharp, _SHARPEST * moved, _MOST), 0.0)
    threshold = np.fmax(threshold, made)
    return replace(
        limits,
        threshold=threshold,
        reason=f"{limits.reason}; the cache keeps few bits, which moves rows by {moved:.1e}, "
        f"raised to {TIMES_REFEREE:.0f} times that",
    )
