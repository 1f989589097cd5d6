"""Tokens that were tried, and of which the cache keeps other ones than the text does.

Who tries several tokens at once (speculative decoding, lookahead) goes on with the likeliest token
after the last one that the model would have written as well; the rows of the others go. Where a
run does so after each such step, and the rows that stay end elsewhere, the cache was cropped in
the wrong place: each text as it is held is computed rightly, and is not the one that is written.
What samples is soon fed something else, and is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace
from kvtrace.trace.view import cells_of

_SURE = 3
"""Steps after tried tokens that went on with the likeliest, and none with another."""


@dataclass(slots=True)
class Rejected:
    """Looks for rows of tried tokens that stay or go against what the tokens say.

    Attributes:
        trace: Whose steps.
        found: The first place, whatever the run does else.
    """

    trace: Trace
    found: Finding | None = None
    _tried: dict[int, Step] = field(default_factory=dict)
    _greedy: int = 0
    _strayed: bool = False

    def add(self, step: Step) -> None:
        """A step, in the order of the run."""
        tried = None if step.parent is None else self._tried.get(step.parent)
        alone = step.num_sequences == 1 and step.packed is None
        if step.likeliest and alone and any(one.length_after for one in step.caches):
            self._tried[step.number] = step
        if tried is None or step.num_sequences > 1 or not step.caches:
            return
        kept = self._kept(step, tried)
        if kept is None:
            self._strayed = True
            return
        best, first = tried.likeliest[0], step.tokens[0][0]
        right = _accepted(tried.tokens[0], best)
        if kept and first == best[kept - 1]:
            self._greedy += 1
        elif first == best[right - 1]:
            self._greedy += 1
            self.found = self.found or self._finding(step, tried, kept, right)
        elif kept < tried.new:
            self._strayed = True

    @property
    def finding(self) -> Finding | None:
        """What is wrong, if all steps so far say so."""
        return None if self._strayed or self._greedy < _SURE else self.found

    def _kept(self, step: Step, tried: Step) -> int | None:
        """How many rows of the tried tokens a step sees, the first ones; None: it sees others."""
        site = next((n for n in step.attending if self.trace.site(n).kind == "self"), None)
        if site is None:
            return None
        layer = self.trace.site(site).reads
        here, wrote = step.cache_step(layer), tried.cache_step(layer)
        if here is None or wrote is None or wrote.rows != tried.new:
            return None
        cells = cells_of(here.attended[0])
        seen = cells[self.trace.visible(step.number, site, 0, 0)[:, 0].any(axis=0)]
        there = np.isin(wrote.first_cell + np.arange(wrote.rows), seen)
        count = int(there.sum())
        return count if there[:count].all() else None

    def _finding(self, step: Step, tried: Step, kept: int, right: int) -> Finding:
        layer = step.caches[0].layers[0]
        site = next((one.index for one in self.trace.meta.sites if one.reads == layer), 0)
        goes_on = (
            f"the step goes on with the likeliest token after the first {right} of the "
            f"{tried.new} tokens that step {tried.number} tried"
        )
        at = (step.number, site, "k")
        if kept < right:
            none = "none" if not kept else f"only {kept}"
            evidence = f"{goes_on}, and {none} of their rows {'are' if kept != 1 else 'is'} there"
            return Finding("HISTORY-LOST", *at, evidence, row=0)
        evidence = f"{goes_on}, and sees {kept} of their rows: those of rejected tokens stayed"
        return Finding("STALE-CACHE", *at, evidence, row=0)


def cropped_elsewhere(trace: Trace) -> Finding | None:
    """Where a run keeps other rows of tried tokens than its text has; None: nowhere."""
    looking = Rejected(trace)
    for number in trace.numbers:
        looking.add(trace.step(number))
    return looking.finding


def _accepted(tokens: Sequence[int], best: Sequence[int]) -> int:
    """Of tried tokens, those that the model would have written: the first is its own, [new]."""
    count = 1
    while count < len(tokens) and tokens[count] == best[count - 1]:
        count += 1
    return count
