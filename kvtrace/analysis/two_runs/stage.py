"""The first difference of two runs as a scene, so that the checks can name what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.scenes.scene import Scales, Scene, Side
from kvtrace.analysis.checks.wrong_output.precision import to_type
from kvtrace.analysis.two_runs.align import Fed, Pair, Path, places_of
from kvtrace.analysis.two_runs.causes import TABLES
from kvtrace.errors import TraceError
from kvtrace.trace import Step, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.view import CacheView

_NARROW = ("float16", "bfloat16")


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


class _Run(Struct, frozen=True):
    """One step of one of the runs.

    Attributes:
        trace: The run.
        fed: A token of the step.
        path: Of its sequence.
        told: Places are the positions that the steps were told.
    """

    trace: Trace
    fed: Fed
    path: Path
    told: bool

    @property
    def step(self) -> Step:
        """It."""
        return self.trace.step(self.fed.step)

    @property
    def live(self) -> NDArray[np.bool_]:
        """New rows that are no padding."""
        return np.array([place >= 0 for place in self.step.positions[self.fed.sequence]])

    @property
    def fresh(self) -> NDArray[np.int64]:
        """Places of those."""
        if self.told:
            positions = self.step.positions[self.fed.sequence]
            return np.array([place for place in positions if place >= 0], np.int64)
        here = (self.fed.step, self.fed.sequence)
        places = [at for at, one in self.path.items() if (one.step, one.sequence) == here]
        return np.array(sorted(places), np.int64)

    def places(self, layer: int, view: CacheView) -> NDArray[np.int64]:
        """Place of each attended row; negative: none."""
        if self.told:
            return view.positions
        known = places_of(self.trace, self.fed.step, layer, self.path)
        return np.array([known.get(int(cell), -1) for cell in view.cells], np.int64)


def diagnosed(
    old: Trace, new: Trace, at: At, pair: Pair, pairs: Sequence[Pair], *, told: bool
) -> Finding | None:
    """What the difference looks like; None where the runs took other steps, or no check speaks.

    Args:
        old: The run that is taken as right.
        new: The other one.
        at: Where they part.
        pair: The sequence.
        pairs: All of them.
        told: Places are the positions that the steps were told.
    """
    mine, theirs = (
        _Run(trace, path[at.position], path, told)
        for trace, path in ((old, pair.old), (new, pair.new))
    )
    if mine.fresh.tolist() != theirs.fresh.tolist():
        return None
    try:
        crossing = new.site(at.layer).kind == "cross"
        if crossing:
            scene = _cross_scene(mine, theirs, at)
        else:
            owners = _Owners(mine, theirs, at, pairs)
            scene = replace(
                _scene(mine, theirs, at),
                layer_rows=owners.layer,
                sequence_rows=owners.sequence,
                spoken=lambda other: spoken(new.meta, other),
            )
        found = diagnose(scene)
    except (TraceError, IndexError, ValueError):
        return None  # rows that were not recorded, or of other shapes: the place itself is told
    if found is not None and (found.name, found.tensor) == ("LENGTH-DEPENDENT-POSITIONS", "q"):
        # both are equally long here: the length can't be the reason
        evidence = f"{found.evidence}: {TABLES}"
        return replace(found, name="POSITION-ROPE", evidence=evidence)
    return found


class _Owners(Struct, frozen=True):
    """Whose rows of the old run those of the new one may be instead.

    Attributes:
        right, mine: The step in the old run and in the new one.
        at: Where they part.
        pairs: All sequences.
    """

    right: _Run
    mine: _Run
    at: At
    pairs: Sequence[Pair]

    def layer(self, other: int) -> tuple[Floats, Floats] | None:
        """Keys and values of another layer of the same kind, by place."""
        trace = self.right.trace
        if trace.site(other).kind != trace.site(self.at.layer).kind:
            return None
        return self._kept(self.right, other)

    def sequence(self, other: int) -> tuple[Floats, Floats] | None:
        """Those of another sequence of the new run's step, as the old run has them."""
        at = (self.mine.fed.step, other)
        for pair in self.pairs:
            here = [place for place, fed in pair.new.items() if (fed.step, fed.sequence) == at]
            fed = pair.old.get(max(here, default=-1))
            if fed is not None:
                run = _Run(self.right.trace, fed, pair.old, self.right.told)
                return self._kept(run, self.at.layer)
        return None

    def _kept(self, run: _Run, layer: int) -> tuple[Floats, Floats] | None:
        try:
            side = _side(run, layer, run.fresh)
        except (TraceError, IndexError, ValueError):
            return None  # not recorded, or damaged
        return side.keys, side.values


def _scene(right: _Run, mine: _Run, at: At) -> Scene:
    old, new, theirs = right.trace, mine.trace, mine.fed.sequence
    step, fresh = mine.step, right.fresh
    reference = _as_in(_side(right, at.layer, fresh), old, new)
    view, cached = new.cache(at.new_step, at.layer, theirs), _given(mine, at.layer)
    places = mine.places(at.layer, view)
    known = (places >= 0) & (places <= int(fresh[-1]))
    weights = old.weights(at.old_step, at.layer, sequence=right.fed.sequence).weights

    def weight(row: int) -> Floats:
        out = np.zeros((weights.shape[0], reference.keys.shape[1]), np.float32)
        source = right.places(at.layer, old.cache(at.old_step, at.layer, right.fed.sequence))
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
        supposed=np.where(known, places, -1),
        slots=view.slots,
        changed=np.zeros(len(view.cells), bool),
        atol=Scales.of(reference, at.limit),
        weights=weight,
        layers=len(new.meta.sites),
        sequences=step.num_sequences,
        first_site=at.layer == 0 and new.site(0).layer == 0,
    )


def _cross_scene(right: _Run, mine: _Run, at: At) -> Scene:
    """The same for attention to an encoder: a row's place is its slot, as its encoder made it."""
    cached = _given(mine, at.layer)
    reference = _as_in(_given(right, at.layer), right.trace, mine.trace)
    size, rows = reference.keys.shape[1], reference.queries.shape[1]
    supposed = np.arange(cached.keys.shape[1])
    derived = right.trace.weights(at.old_step, at.layer, sequence=right.fed.sequence)
    weights = derived.weights[:, -rows:]
    return Scene(
        step=at.new_step,
        layer=at.layer,
        sequence=mine.fed.sequence,
        site=mine.trace.site(at.layer),
        first_step=False,
        cached=cached,
        reference=reference,
        places=np.arange(size, size + rows),
        supposed=np.where(supposed < size, supposed, -1),
        slots=supposed,
        changed=np.zeros(len(supposed), bool),
        atol=Scales.of(reference, at.limit),
        weights=lambda row: weights[:, row],
        layers=len(mine.trace.meta.sites),
        sequences=mine.step.num_sequences,
    )


def _given(run: _Run, layer: int) -> Side:
    """What a step's attention was given, and made, its rows in slot order."""
    trace, number, sequence = run.trace, run.fed.step, run.fed.sequence
    view, keep = trace.cache(number, layer, sequence), run.live
    seen = trace.visible(number, layer, sequence).any(axis=0)
    return Side(
        trace.queries(number, layer, sequence)[:, keep],
        view.keys,
        view.values,
        trace.output(number, layer, sequence)[:, keep],
        np.broadcast_to(seen, (len(keep), len(view.cells)))[keep],
    )


def _as_in(side: Side, old: Trace, new: Trace) -> Side:
    """What the old run has, in the new one's type: that it is narrow is known, and no cause."""
    kind = new.meta.model.dtype
    if kind == old.meta.model.dtype or kind not in _NARROW:
        return side
    q, k, v, output = (
        to_type(rows.astype(np.float64), kind).astype(np.float32)
        for rows in (side.queries, side.keys, side.values, side.output)
    )
    return replace(side, queries=q, keys=k, values=v, output=output)


def _side(run: _Run, layer: int, fresh: NDArray[np.int64]) -> Side:
    """A step by places; rows it did not attend to are NaN."""
    given = _given(run, layer)
    size = int(fresh[-1]) + 1
    places = run.places(layer, run.trace.cache(run.fed.step, layer, run.fed.sequence))
    live = (places >= 0) & (places < size)
    where = places[live]
    visible = np.zeros((len(fresh), size), bool)
    visible[:, where] = given.visible[:, live]
    return replace(
        given,
        keys=_placed(given.keys, where, live, size),
        values=_placed(given.values, where, live, size),
        visible=visible,
    )


def _placed(rows: Floats, where: np.ndarray, live: np.ndarray, size: int) -> Floats:
    out = np.full((rows.shape[0], size, rows.shape[2]), np.nan, np.float32)
    out[:, where] = rows[:, live]
    return out
