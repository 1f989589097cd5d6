"""The first difference of two runs as a scene, so that the checks can name what it looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scene import Scales, Scene, Side
from kvtrace.analysis.diff_align import Path
from kvtrace.errors import TraceError
from kvtrace.trace import Trace
from kvtrace.trace.dtypes import Floats


class At(Protocol):
    """Where to look."""

    @property
    def old_step(self) -> int:
        """Step of the run that is taken as right."""

    @property
    def new_step(self) -> int:
        """Step of the other one."""

    @property
    def layer(self) -> int:
        """Site."""

    @property
    def position(self) -> int:
        """Of the first row compared."""

    @property
    def limit(self) -> float:
        """Relative difference that is rounding."""


def diagnosed(old: Trace, new: Trace, at: At, pair: tuple[Path, Path]) -> Finding | None:
    """What the difference looks like; None where the runs took other steps, or no check speaks."""
    places = [path[at.position] for path in pair]
    steps = old.step(at.old_step), new.step(at.new_step)
    rows = [
        [place for place in step.positions[fed.sequence] if place >= 0]
        for step, fed in zip(steps, places, strict=True)
    ]
    if rows[0] != rows[1]:
        return None
    try:
        scene = _scene(old, new, at, places[0].sequence, places[1].sequence)
        found = diagnose(scene)
    except (TraceError, IndexError, ValueError):
        return None  # rows that were not recorded, or of other shapes: the place itself is told
    if found is not None and (found.name, found.tensor) == ("LENGTH-DEPENDENT-POSITIONS", "q"):
        # both are equally long here: the length can't be the reason
        evidence = f"{found.evidence}: the base or the scaling of the rotary tables differs"
        return replace(found, name="POSITION-ROPE", evidence=evidence)
    return found


def _scene(old: Trace, new: Trace, at: At, mine: int, theirs: int) -> Scene:
    step, right = new.step(at.new_step), old.step(at.old_step)
    fresh = np.array([p for p in right.positions[mine] if p >= 0], np.int64)
    reference = _side(old, at.old_step, at.layer, mine, fresh)
    view = new.cache(at.new_step, at.layer, theirs)
    keep = np.array([p >= 0 for p in step.positions[theirs]])
    seen = new.visible(at.new_step, at.layer, theirs).any(axis=0)
    cached = Side(
        new.queries(at.new_step, at.layer, theirs)[:, keep],
        view.keys,
        view.values,
        new.output(at.new_step, at.layer, theirs)[:, keep],
        np.broadcast_to(seen, (len(keep), len(view.cells)))[keep],
    )
    known = (view.positions >= 0) & (view.positions <= int(fresh[-1]))
    weights = old.weights(at.old_step, at.layer, sequence=mine).weights

    def weight(row: int) -> Floats:
        out = np.zeros((weights.shape[0], reference.keys.shape[1]), np.float32)
        source = old.cache(at.old_step, at.layer, mine).positions
        live = source >= 0
        offset = weights.shape[1] - len(fresh)
        out[:, source[live]] = weights[:, offset + row][:, live]
        return out

    return Scene(
        step=at.new_step,
        layer=at.layer,
        sequence=theirs,
        site=new.site(at.layer),
        first_step=new.cache_step(at.new_step, at.layer).length_before == 0,
        cached=cached,
        reference=reference,
        places=fresh,
        supposed=np.where(known, view.positions, -1),
        slots=view.slots,
        changed=np.zeros(len(view.cells), bool),
        padding=0,
        atol=_scales(reference, at.limit),
        weights=weight,
        layer_rows=lambda other: None,
        sequence_rows=lambda other: None,
        layers=len(new.meta.sites),
        sequences=step.num_sequences,
        first_site=at.layer == 0 and new.site(0).layer == 0,
    )


def _side(trace: Trace, number: int, layer: int, sequence: int, fresh: np.ndarray) -> Side:
    """A step by places, which here are positions; rows it did not attend to are NaN."""
    view = trace.cache(number, layer, sequence)
    size = int(fresh[-1]) + 1
    live = (view.positions >= 0) & (view.positions < size)
    where = view.positions[live]
    keep = np.array([p >= 0 for p in trace.step(number).positions[sequence]])
    seen = trace.visible(number, layer, sequence).any(axis=0)
    seen = np.broadcast_to(seen, (len(keep), len(view.cells)))[keep]
    visible = np.zeros((len(fresh), size), bool)
    visible[:, where] = seen[:, live]
    return Side(
        trace.queries(number, layer, sequence)[:, keep],
        _placed(view.keys, where, live, size),
        _placed(view.values, where, live, size),
        trace.output(number, layer, sequence)[:, keep],
        visible,
    )


def _placed(rows: Floats, where: np.ndarray, live: np.ndarray, size: int) -> Floats:
    out = np.full((rows.shape[0], size, rows.shape[2]), np.nan, np.float32)
    out[:, where] = rows[:, live]
    return out


def _scales(side: Side, limit: float) -> Scales:
    def atol(rows: Floats) -> float:
        return limit * float(np.abs(rows[np.isfinite(rows)]).max(initial=0.0)) + 1e-12

    return Scales(atol(side.queries), atol(side.keys), atol(side.values), atol(side.output))
