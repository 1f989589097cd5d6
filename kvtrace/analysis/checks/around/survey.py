"""What the comparisons of a run say in sum: largest differences, flips, and what was left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.noise import largest
from kvtrace.analysis.checks.report import Flip
from kvtrace.analysis.heads.tensors import NAMES
from kvtrace.analysis.selfcheck import tolerance_of
from kvtrace.trace import NOT_REPEATABLE, Step, Tensor, Trace

_FLIPS_KEPT = 1000

_SEVERAL = 3
"""Steps in a row that look like answers to one text, or like one that loses its rows."""


@dataclass(slots=True)
class Survey:
    """Grows with the steps; memory does not.

    Attributes:
        trace: Whose steps.
        lane: Compared with the cached one.
        on_step: Told the number of each step.
        compared: Steps that were.
        missing: Numbers of steps that attend and were not.
        why: Of some of these, why not.
        flips: Steps whose lanes prefer different tokens.
        logits: Steps whose logits were compared.
        reused: Whether an attention was given rows that an earlier step computed.
        padded: Sequences that are padded behind or within their text, which the lane is not.
        apart: So many steps of one token each, one after the other, lack the row of the one before.
        again: That a text was fed again on top of itself, a sentence; empty: it was not.
        steep: Sites whose large scores carried rounding to their output.
    """

    trace: Trace
    lane: str
    on_step: Callable[[int], None] | None = None
    compared: int = 0
    missing: list[int] = field(default_factory=list)
    why: dict[int, str] = field(default_factory=dict)
    flips: list[Flip] = field(default_factory=list)
    logits: int = 0
    reused: bool = False
    padded: set[int] = field(default_factory=set)
    apart: int = 0
    again: str = ""
    steep: set[int] = field(default_factory=set)
    _top: NDArray[np.float64] | None = None
    _unexplained: dict[int, float] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Take a step in."""
        if self.on_step is not None:
            self.on_step(step.number)
        self._self_checks(step)
        self.reused = self.reused or _reads_older_rows(self.trace, step)
        found = self.trace.compared(step.number, self.lane)
        sites = self.trace.meta.sites
        if found is None or found.relative.size == 0:
            if any(sites[site].kind == "self" for site in step.attending):
                self.missing.append(step.number)
            return
        self.compared += 1
        here = largest(found, len(sites))
        self._top = here if self._top is None else np.fmax(self._top, here)
        self.logits += bool(found.logits)
        for row, one in enumerate(found.logits):
            if one.best != one.lane_best and len(self.flips) < _FLIPS_KEPT:
                self.flips.append(Flip(step.number, row, one.margin, one.max_abs))

    def leave_out(self, step: Step, why: str = "") -> None:
        """Count a step that was just taken in as one that can't be compared."""
        self.compared -= 1
        self.missing.append(step.number)
        self.why[step.number] = why

    def _self_checks(self, step: Step) -> None:
        """Sites whose recorded rows do not explain their recorded output."""
        for group in step.sites:
            for site, error, scale in zip(
                group.sites, group.check_error, group.check_scale, strict=True
            ):
                limit = tolerance_of(self.trace, self.trace.meta.sites[site])
                if error is not None and scale > 0 and error > limit * scale:
                    self._unexplained.setdefault(site, error / scale)

    @property
    def largest(self) -> tuple[tuple[str, float], ...]:
        """Largest relative difference, per tensor name."""
        if self._top is None:
            return ()
        return tuple((NAMES[t], float(np.nanmax(self._top[:, t], initial=0.0))) for t in Tensor)

    @property
    def uncompared_sites(self) -> list[int]:
        """Self-attention sites of which no tensor was ever compared."""
        if self._top is None:
            return []
        sites = [site for site in self.trace.meta.sites if site.kind == "self"]
        return [s.index for s in sites if bool(np.isnan(self._top[s.index]).all())]

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a verdict does not cover."""
        told = (self._random(), self._unseen(), self._left_out(), self._right(), self._doubts())
        return tuple(filter(None, (*told, self._each_anew(), self.again, self._steep())))

    def _random(self) -> str:
        found = (one.text for one in self.trace.notes if one.text.startswith(NOT_REPEATABLE))
        return next(found, "")

    def _unseen(self) -> str:
        names = self.trace.meta.unseen
        if not names:
            return ""
        return f"{len(names)} modules look like attention and were not seen: {_some(names)}"

    def _left_out(self) -> str:
        sites = [self.trace.meta.sites[index] for index in self.uncompared_sites]
        if not sites:
            return ""
        return f"not compared: {_some([site.module or 'the model' for site in sites])}"

    def _right(self) -> str:
        if not self.padded:
            return ""
        which = ", ".join(map(str, sorted(self.padded)))
        return (
            f"sequence {which} is padded behind or within its text: the other lane knows padding "
            "at the left only, and says nothing about it"
        )

    def _each_anew(self) -> str:
        if self.apart < _SEVERAL:
            return ""
        return (
            f"{self.apart} steps of one token each begin without the row of the step before, as if "
            "each were another answer to the same text: if they are one text, its cache loses them"
        )

    def _steep(self) -> str:
        if not self.steep:
            return ""
        which = _some([f"layer {self.trace.site(site).layer}" for site in sorted(self.steep)])
        return (
            f"{which}: rounding of what went in moves the output by more than rounding usually "
            "does, as where scores are large; it is right for what went in, and layers behind may "
            "differ more"
        )

    def _doubts(self) -> str:
        if not self._unexplained:
            return ""
        sites = self.trace.meta.sites
        modules = [sites[site].module or "the model" for site in sorted(self._unexplained)]
        far = max(self._unexplained.values())
        return (
            f"what was recorded of {_some(modules)} does not explain its output (off by "
            f"{far:.1g}): it does something that kvtrace did not see"
        )


def _reads_older_rows(trace: Trace, step: Step) -> bool:
    """Whether an attention was given rows that this step did not compute.

    Rows that come out as they were before are known again; where all tokens went in, they were
    computed all the same. Rows of tokens that did not go in come from a cache, though it gives
    them otherwise every time. Those of an encoder are its own, however few tokens went in.
    """
    crossed = {site.reads for site in trace.meta.sites if site.kind == "cross"}
    return any(
        any(run.cell < group.first_cell or 0 <= run.position < place[0] for run in runs)
        and sum(run.count for run in runs) > step.new
        for group in step.caches
        if group.length_after or not crossed.issuperset(group.layers)
        for place, runs in zip(step.positions, group.attended, strict=False)
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    """The first few of many."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
