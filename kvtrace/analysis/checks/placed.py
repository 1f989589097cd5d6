"""A finding with what the trace knows of its place, and a check that may stumble over numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.noise import Noise, largest
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.place_names import met_first, spoken
from kvtrace.analysis.checks.scenes.scene import Scene, Side
from kvtrace.trace import INEXACT, Trace

_CHANGED = ("CONTENT", "OLD-ROWS-CHANGED", "UNKNOWN")


def placed(
    trace: Trace, found: Finding, limits: Noise | None, lane: str | None, sequence: int = 0
) -> Finding:
    """A finding with what the trace knows of its place: how far apart, slot, source line."""
    sites = trace.meta.sites
    if not 0 <= found.layer < len(sites):
        return found
    site = sites[found.layer]
    code = ", ".join(filter(None, (site.module, site.code)))
    group = site.num_heads // site.num_kv_heads
    found = replace(found, code=code, spoken=spoken(trace.meta, found.layer), group=group)
    compared = None if lane is None else trace.compared(found.step, lane)
    known = found.apart is not None or found.name == "NONFINITE"
    if compared is not None and limits is not None and not known:
        here = largest(compared, len(sites))[found.layer]
        if np.isfinite(here).any():
            worst = int(np.nanargmax(here / limits.threshold[found.layer]))
            limit = float(limits.threshold[found.layer, worst])
            found = replace(found, apart=float(here[worst]), limit=limit)
    if trace.meta.cache_layers[site.reads].remark.startswith(INEXACT):
        found = _of_its_cache(found)
    whole = found.tensor == "k" and found.head is None
    if whole and found.name in ("MASK", "EVICTED-EARLY"):
        found = _let_go(trace, found, site.reads, sequence)
    if found.slot is None and found.row is not None and found.tensor in ("k", "v"):
        found = replace(found, slot=_slot(trace, found, sequence))
    return found


def of_its_place(trace: Trace, found: Finding) -> Finding:
    """A finding at the place it is about: a call that is met again in another shape is no other."""
    first = met_first(trace.meta, found.layer)
    return found if first == found.layer else replace(found, layer=first, site=found.layer)


def _of_its_cache(found: Finding) -> Finding:
    """Rows that a cache is known to change are its doing, not of what computes them."""
    if found.tensor not in ("k", "v") or found.name not in (*_CHANGED, "DTYPE"):
        return found
    name = "DTYPE" if found.name in _CHANGED and found.apart and found.apart < 1 else found.name
    return replace(found, name=name, evidence=f"{found.evidence.rstrip('.')}; {INEXACT}")


def _let_go(trace: Trace, found: Finding, store: int, sequence: int) -> Finding:
    """Rows that are not there, of a cache that was seen to drop rows: it evicted them."""
    for number in reversed([one for one in trace.numbers if one <= found.step]):
        group = next((one for one in trace.step(number).caches if store in one.layers), None)
        if group is None or sequence >= len(group.kept):
            continue
        # of its own step, what was dropped before the attention looked
        rows = group.attended if number == found.step else group.kept
        # a prompt may be longer than what its cache ever took
        came = max(group.rows, trace.step(number).new) if group.rows else 0
        had = group.length_before + came - group.rewritten
        kept = sum(run.count for run in rows[sequence])
        if kept < had:
            more = f"in step {number} its cache kept {kept} of {had} rows"
            return replace(found, name="EVICTED-EARLY", evidence=f"{found.evidence}; {more}")
    return found


def _slot(trace: Trace, found: Finding, sequence: int) -> int | None:
    """Slot of an attended row."""
    row = found.row or 0
    for run in trace.cache_step(found.step, found.layer).attended[sequence]:
        if row < run.count:
            return run.slot + row
        row -= run.count
    return None


def named(diagnose: Callable[[Scene], Finding | None], scene: Scene | None) -> Finding | None:
    """What a scene shows; nothing where the right numbers are no numbers, or no check can tell.

    A signature that stumbles over numbers nobody has thought of must not hide the difference: it
    is then unknown.
    """
    if scene is None or not _finite(scene.reference, scene):
        return None
    try:
        return diagnose(scene)
    except (ArithmeticError, LookupError, ValueError):
        return None


def _finite(side: Side, scene: Scene) -> bool:
    """Whether the numbers of real tokens are; padding may be anything."""
    live, wanted = scene.live, scene.wanted
    rows = (side.queries[:, live], side.output[:, live])
    return all(bool(np.isfinite(one).all()) for one in rows) and bool(
        np.isfinite(side.keys[:, wanted]).all() and np.isfinite(side.values[:, wanted]).all()
    )
