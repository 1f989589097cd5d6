"""Caches that keep few bits of every row, all alike: that is meant, what else differs is not.

A cache that quantises what it is given hands back rounded rows in all layers, at once or when it
is asked for them again. Whatever else is wrong with it shows by more than that rounding, which the
first step that has it measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.noise import ANYTHING, NOTHING_LEFT, TIMES_REFEREE, Noise, largest
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.rows import pair, supposed_inside
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.analysis.checks.wrong_rows.grid import quantised
from kvtrace.analysis.checks.wrong_rows.levels import SMALL_FLOATS, scaled_floats
from kvtrace.trace import Step, Tensor, Trace
from kvtrace.trace.dtypes import Floats

_MOST = 0.5
"""Of the largest number: rows that rounding moves by more are those of something else."""

_LAYERS_DEEP = 4

_TIMES_AGAIN = 16.0
"""The most that rows which are rounded again and again move, of what once moves them."""

_MOST_AGAIN = 0.1
"""The most that is believed to come of that: eight bits, not four."""

_TIMES_SEEN = 8.0
"""What the outputs of later steps are off by, at most, of what those of the first one are."""

_SHARPEST = 16.0
"""The most that outputs are off by, of what their rows are; more has another cause."""

_BOTH = 2
"""Keys and values."""


class Few(Struct, frozen=True):
    """What rows were rounded to.

    Attributes:
        count: Bits of a number.
        what: Which values they take, in words.
        mantissa: Bits of it, of small floats; None: whole numbers.
        moved: The most that it moved a number by, over the largest of its head.
    """

    count: int
    what: str
    mantissa: int | None = None
    moved: float = 0.0

    @property
    def step(self) -> float:
        """The most that rounding moves a number by, over the largest of its group."""
        if self.mantissa is not None:
            return 2.0**-self.mantissa
        return 1 / max((1 << self.count - 1) - 1, 1)


Bits = dict[str, Few]
"""Of keys and values, as far as they are quantised."""


def in_few_bits(trace: Trace, lane: str, limits: Noise) -> tuple[Finding | None, Noise] | None:
    """Rounding by a whole cache, and what counts as rounding beside it; None where there is none.

    Args:
        trace: Its first step that differs is looked at: a cache may quantise what it is given, or
            hand that on as it was and read back what it made of it.
        lane: The reference.
        limits: What would be rounding without it.
    """
    return _by_levels(trace, lane, limits) or _by_name(trace, lane, limits)


def kinds(mine: Floats, right: Floats) -> Iterator[Few]:
    """To what rows may have been rounded, the likeliest first; nothing where they take many values.

    Nor where the right ones take few, too.

    Args:
        mine: [heads, rows, dim].
        right: Rows that were not rounded; of another shape, they tell nothing.
    """
    if mine.shape != right.shape or not mine.size:
        return
    grid = quantised(mine, right)
    if grid is not None:
        yield Few(grid[0], f"evenly spaced values in each {grid[1]}")
    floats = scaled_floats(mine, right)
    if floats is not None:
        name, what = floats
        mantissa = dict(SMALL_FLOATS)[name]
        yield Few(8, f"values of {name} times a scale of each {what}", mantissa)


def _by_levels(trace: Trace, lane: str, limits: Noise) -> tuple[Finding, Noise] | None:
    """The same of rows whose levels are seen."""
    met = _first_apart(trace, lane, limits)
    if met is None:
        return None
    step, top = met
    sites = sorted(step.attending, key=lambda site: trace.site(site).layer)
    if not sites or any(trace.site(site).kind != "self" for site in sites):
        return None
    first, rows = sites[0], [Tensor.KEYS, Tensor.VALUES]
    beyond = top[first] > limits.threshold[first]
    if beyond[Tensor.QUERIES]:
        return None
    bits = bits_of(trace, step, first, lane, limits)
    moved = float(np.fmax.reduce(top[first][rows]))
    if np.isnan(moved):  # none was compared by itself
        moved = max((one.moved for one in bits.values()), default=moved)
    if not _explain(bits, moved, beyond):
        return None
    if any(_alike(bits_of(trace, step, site, lane, limits)) != _alike(bits) for site in sites[1:]):
        return None
    return _said(step, first, bits, moved), _raised(trace, limits, moved, top)


def _by_name(trace: Trace, lane: str, limits: Noise) -> tuple[None, Noise] | None:
    """The same of a cache that says that it quantises, where the model's own type hides the levels.

    Both roundings together move more than either, and more whenever rows are rounded again.
    """
    sites = [site for site in trace.meta.sites if site.kind == "self"]
    if not sites or any(trace.cache_layer(site.index).kind != "quantised" for site in sites):
        return None
    first, top = min(sites, key=lambda site: site.layer).index, np.zeros_like(limits.threshold)
    for number in trace.numbers:
        compared = trace.compared(number, lane)
        if compared is not None and trace.step(number).parent is not None:
            top = np.fmax(top, largest(compared, len(top)))
    by = top[first, [Tensor.KEYS, Tensor.VALUES]]
    if not by.max() > 0:
        return None
    # rows that are moved further are wrong besides, and compared with others as rounded ones are
    moved = float(by[by <= _MOST_AGAIN].max(initial=0.0)) or _MOST_AGAIN / TIMES_REFEREE
    return None, _raised(trace, limits, moved, top)


def _first_apart(trace: Trace, lane: str, limits: Noise) -> tuple[Step, NDArray[np.float64]] | None:
    """The first step with a difference, and how large all of its are, [sites, 4]."""
    for number in trace.numbers:
        compared = trace.compared(number, lane)
        if compared is not None:
            top = largest(compared, len(limits.threshold))
            if (top > limits.threshold).any():
                return trace.step(number), top
    return None


def _explain(bits: Bits, moved: float, beyond: NDArray[np.bool_]) -> bool:
    """Whether so few bits move rows by as much, and every tensor that differs has them."""
    differ = {name for name, tensor in (("k", Tensor.KEYS), ("v", Tensor.VALUES)) if beyond[tensor]}
    if not bits or not differ <= set(bits):
        return False
    small = any(one.mantissa is not None for one in bits.values())
    if small and len(bits) < _BOTH:
        return False  # a cast of one of them is a slip
    return moved <= min(_MOST, *(one.step for one in bits.values()))


def explained(bits: Bits, apart: float) -> bool:
    """Whether what follows from rows of so few bits may be off by as much."""
    moved = max((one.moved for one in bits.values()), default=0.0)
    return apart <= min(NOTHING_LEFT, _SHARPEST * moved)


def _alike(bits: Bits) -> Mapping[str, tuple[int, int | None]]:
    """What the bits of all layers have in common: what shares a scale may look otherwise."""
    return {name: (one.count, one.mantissa) for name, one in bits.items()}


def bits_of(trace: Trace, step: Step, site: int, lane: str, limits: Noise) -> Bits:
    """In how few bits the keys and values of a site are, in all sequences; empty: in none."""
    found: list[Bits] = []
    for sequence in range(step.num_sequences):
        tolerance = limits.tolerance(site)
        scene = stage(trace, step.number, site, sequence, tolerance, lane)
        found.append({} if scene is None else _of(scene, begins=step.parent is None))
    return found[0] if all(_alike(one) == _alike(found[0]) for one in found) else {}


def _of(scene: Scene, *, begins: bool) -> Bits:
    """The same of one sequence."""
    rows = scene.seen
    if not len(rows) or not supposed_inside(scene, rows).all():
        return {}
    if not begins:
        rows = rows[~np.isin(scene.supposed[rows], scene.places)]
    out: Bits = {}
    for name in ("k", "v"):
        for some in (rows, _oldest(scene, name, rows)):
            mine, right, _ = pair(scene, name, some)
            found = next(kinds(mine, right), None)
            if found is not None:
                out[name] = replace(found, moved=_apart(mine, right))
                break
    return out


def _apart(mine: Floats, right: Floats) -> float:
    """The most that any head is off by, over its largest number."""
    size = np.maximum(np.abs(right).max(axis=(1, 2)), 1e-30)
    return float((np.abs(mine - right).max(axis=(1, 2)) / size).max())


def _oldest(scene: Scene, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those before the first that is as it should be: the newest may be kept whole for a while."""
    rows = rows[np.argsort(scene.supposed[rows], kind="stable")]
    mine, right, atol = pair(scene, name, rows)
    if mine.shape != right.shape:
        return rows[:0]
    equal = np.abs(mine - right).max(axis=(0, 2), initial=0.0) <= atol
    return rows[: int(np.argmax(np.append(equal, True)))]


def _said(step: Step, site: int, bits: Bits, moved: float) -> Finding:
    tensor = next(iter(bits))
    counts = " and ".join(f"{name} of {one.count} bits" for name, one in bits.items())
    later = f"what is read back from step {step.number} on of all layers takes"
    rows = "all rows of all layers take" if step.parent is None else later
    evidence = (
        f"{rows} {bits[tensor].what}: {counts}. "
        f"That moves them by {moved:.1e} of the largest; only more than "
        f"{_rows(moved) / moved:.0f} times that is told besides"
    )
    return Finding("DTYPE", step.number, site, tensor, evidence, meant=True)


def _rows(moved: float) -> float:
    """The most that rows may be off by where rounding once moves them by as much."""
    return max(TIMES_REFEREE * moved, min(_TIMES_AGAIN * moved, _MOST_AGAIN))


def _raised(trace: Trace, limits: Noise, moved: float, top: NDArray[np.float64]) -> Noise:
    """What is rounding where rows are moved by as much; sharp weights make more of it."""
    layers = np.array([site.layer for site in trace.meta.sites])
    rows = _rows(moved)
    far = rows * np.maximum(1.0, (layers + 1) / _LAYERS_DEEP)
    sharp = np.nanmax(top[:, Tensor.OUTPUT], initial=0.0) * _TIMES_SEEN
    made = min(sharp, _SHARPEST * moved)
    follows = np.repeat((layers > layers.min())[:, None], 4, axis=1)
    follows[:, Tensor.OUTPUT] = True
    threshold = np.fmax(limits.threshold, far[:, None])
    threshold[follows] = np.fmax(threshold[follows], made if made < NOTHING_LEFT else ANYTHING)
    return replace(
        limits,
        threshold=threshold,
        held=far,
        reason=f"{limits.reason}; the cache keeps few bits, which moves rows by {moved:.1e}, "
        f"raised to {rows / moved:.0f} times that",
    )
