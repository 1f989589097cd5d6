"""Walks a trace in causal order and names what it meets: step, then layer, then tensor.

Reads one step at a time and stops where everything later is a consequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.around.absent import (
    calls_shifted,
    none_compared,
    not_read,
    some_absent,
    where_it_begins,
)
from kvtrace.analysis.checks.around.ahead import Ahead, ahead
from kvtrace.analysis.checks.around.begin import begins
from kvtrace.analysis.checks.around.later import reconsidered
from kvtrace.analysis.checks.around.more_causes import beside
from kvtrace.analysis.checks.around.survey import Survey
from kvtrace.analysis.checks.around.uncompared import of_known_rows
from kvtrace.analysis.checks.at_site import at_site
from kvtrace.analysis.checks.causes import Causes, turn_of
from kvtrace.analysis.checks.classes import KINDS
from kvtrace.analysis.checks.noise import Noise, behind, largest
from kvtrace.analysis.checks.placed import placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.texts import Texts
from kvtrace.analysis.checks.whole_run.held import otherwise_than_held
from kvtrace.analysis.checks.whole_run.last_twice import LastTwice
from kvtrace.analysis.checks.whole_run.unused import FedAgain
from kvtrace.analysis.checks.wrong_output.carried import carried
from kvtrace.trace import Step, Trace

_STEPS_SEARCHED = 64

_LOGITS_TIMES = 50.0
"""Logits gather the rounding of a whole row of hidden numbers, on top of all layers'."""

_UNSEEN_TIMES = 2.0
"""The same in narrow types, where some attention was not seen."""

_LOGITS_APART = 0.01
"""Less changes no probability by more than a hundredth of itself."""


def findings(
    trace: Trace,
    lane: str,
    limits: Noise,
    survey: Survey,
    fresh: Mapping[int, int] | None,
) -> Iterator[Finding]:
    """Findings as they are met, in causal order: step, then layer, then tensor.

    Args:
        trace: Each of its steps is read once.
        lane: The reference.
        limits: What is rounding.
        survey: Told of every step, also of those after everything has been explained.
        fresh: Rows beyond its own that a text began with in the first run, as of `beyond`.
    """
    told = list(_said_by_the_recorder(trace, lane))
    yield from told
    looking, fed, last = (
        ahead(trace, lane, limits, told),
        FedAgain(),
        LastTwice(trace.meta.prompt_ids),
    )
    walk = _Walk(trace, lane, limits, survey, looking, Texts(trace, lane, limits, fresh))
    for step in walk.causes.steps():
        survey.add(step)
        fed.add(step)
        last.add(step)
        looking.add(step)
        yield from walk.step(step)
    if walk.later is not None and walk.causes.first is None:
        yield from (where_it_begins(trace, one) for one in looking.beside([walk.later]))
    survey.again = fed.once or last.once
    again = fed.finding(trace) or last.finding()
    if again is not None:
        yield placed(trace, again, None, None)


@dataclass(slots=True)
class _Walk:
    """How far a walk has come.

    Attributes:
        trace, lane, limits, survey: As `findings` was given them.
        looking: Which rows look ahead.
        texts: Where texts begin, and what is left of those before.
        causes: What was found so far.
        later: The first difference that no attention shows; None: there is none so far.
    """

    trace: Trace
    lane: str
    limits: Noise
    survey: Survey
    looking: Ahead
    texts: Texts
    causes: Causes = field(init=False)
    later: Finding | None = None
    _searched: int = 0
    _astray: bool = False

    def __post_init__(self) -> None:
        self.causes = Causes(self.trace)

    def step(self, step: Step) -> Iterator[Finding]:
        """What a step shows, as long as not everything has been explained."""
        look = not (self._astray or self.causes.of_all(step))
        foreign = [one for one in self.texts.add(step, looking=look) if not self.causes.known(one)]
        yield from foreign
        self.texts.tell(self.survey)
        self._astray = self._astray or self.texts.astray
        if self._astray or self._searched >= _STEPS_SEARCHED:
            return
        places = _sites_beyond(self.trace, step, self.lane, self.limits)
        if not places and not self.causes.of_all(step):
            yield from self._behind_attention(step)
        if unlike := self._unlike_calls(step, places):
            self.survey.leave_out(step, unlike)
            return
        places = self.causes.before(step, self.looking.left(places))
        yield from self._of_lanes(step, places, {one.name for one in foreign})
        if self.causes.first is None:
            yield from self._of_held_rows(step)
        self._searched += bool(places)

    def _unlike_calls(self, step: Step, places: list[int]) -> str:
        """Why calls can't be laid side by side in a step whose logits are equal; empty: they can.

        What some module calculates then is written in another way for single tokens, and right.
        """
        found = calls_shifted(self.trace, step, places[0], self.lane) if places else None
        if found is None or not _equal_logits(self.trace, step, self.lane, self.limits):
            return ""
        return f"{found.evidence}; its logits are equal"

    def _behind_attention(self, step: Step) -> Iterator[Finding]:
        """What the logits show of a step whose attention is all equal."""
        broken = _lost_numbers(step)
        about = (self.lane, self.limits)
        found = _after_attention(self.trace, step, *about)
        if found is not None and not_read(self.trace, found):
            self.survey.leave_out(step)
            found = None
        self.later = self.later or found
        if found is not None and none_compared(self.trace, step.number):
            rest = self.causes.unknown(step, self.texts.padded)
            yield from self._new(step, of_known_rows(self.trace, step, rest, *about), set())
        if broken is not None:
            self._astray = True
            yield placed(self.trace, broken, None, None)

    def _of_lanes(self, step: Step, places: list[int], said: set[str]) -> Iterator[Finding]:
        """What is new at the sites whose lanes differ, but for what was said of the step's text."""
        rest = self.causes.unknown(step, self.texts.padded)
        yield from self._new(step, self._first_of(step, places, rest), said)

    def _new(self, step: Step, first: list[Finding], said: set[str]) -> Iterator[Finding]:
        """What was found at a site, and what else it is the cause of."""
        trace, causes = self.trace, self.causes
        about = (self.lane, self.limits)
        here = [reconsidered(trace, one, *about) for one in first]
        here = [one for one in here if causes.news(step, one)]
        for one in here:
            since = "" if causes.first is not None else begins(trace, one.step, one.layer)
            if one.name not in said:
                yield replace(where_it_begins(trace, one), since=since)
        causes.add(step, here)
        yield from causes.others(self.looking.beside(beside(trace, step, here, *about)))

    def _first_of(self, step: Step, places: list[int], rest: list[int]) -> list[Finding]:
        """What the first site shows that has something to say.

        A row may differ that nobody looks at, and an output by rounding that large scores carried:
        then so may all behind it.
        """
        for site in places:
            about = (self.trace, step, site, rest, self.lane, self.limits)
            found = self.looking.beside(at_site(*about))
            if found:
                return found
            again = self.limits.held is not None  # what was rounded in this step is carried anew
            if (again or site not in self.survey.steep) and carried(*about):
                self.limits = behind(self.limits, self.trace, step.number, site, self.lane)
                self.survey.steep.add(site)
        return []

    def _of_held_rows(self, step: Step) -> Iterator[Finding]:
        """What a cache of few bits reads back otherwise than it held it."""
        found = otherwise_than_held(self.trace, step, self.lane, self.limits)
        if found is not None:
            yield where_it_begins(self.trace, found)
            self.causes.add(step, [found])


def _after_attention(trace: Trace, step: Step, lane: str, limits: Noise) -> Finding | None:
    """Logits that differ although every attention is equal: what follows the last one.

    In narrow types the router of a last layer may flip by rounding: they are only asked about
    steps in which some attention was not seen.
    """
    compared = trace.compared(step.number, lane)
    wide = trace.meta.model.dtype in ("float32", "float64")
    if compared is None or not (wide or some_absent(trace, step)):
        return None
    limit = (_LOGITS_TIMES if wide else _UNSEEN_TIMES) * float(limits.threshold.max())
    for sequence, (one, top) in enumerate(zip(compared.logits, step.top, strict=False)):
        size = max(map(abs, (*top.logits, top.logsumexp)))
        if one.max_abs > max(limit * size, _LOGITS_APART):
            last = max(step.attending, default=0)
            evidence = (
                f"the logits of sequence {sequence} differ by {one.max_abs:.3g}, the highest "
                f"are up to {size:.3g}"
            )
            found = Finding("UPSTREAM", step.number, last, "logits", evidence)
            whose = spoken(trace.meta, last)
            return replace(found, apart=one.max_abs / size, limit=limit, spoken=whose)
    return None


def _equal_logits(trace: Trace, step: Step, lane: str, limits: Noise) -> bool:
    """Whether the logits of all sequences were compared, and differ by rounding alone."""
    compared = trace.compared(step.number, lane)
    if compared is None or not len(compared.logits) == len(step.top) == step.num_sequences:
        return False
    limit = _LOGITS_TIMES * float(limits.threshold.max())
    return all(
        one.max_abs <= limit * max(map(abs, (*top.logits, top.logsumexp)))
        for one, top in zip(compared.logits, step.top, strict=True)
    )


def _said_by_the_recorder(trace: Trace, lane: str) -> Iterator[Finding]:
    """Findings written while the lanes were compared, such as shapes that differ.

    People note findings of their own, in their own words: those name no kind of divergence. What
    is unknown there, or is about another lane, was only not compared: no divergence either.
    """
    others = [f"{one.name} lane" for one in trace.meta.lanes if one.name != lane]
    told = set[str]()
    for note in trace.notes:
        name, _, evidence = note.text.partition(": ")
        if note.kind != "finding" or name not in KINDS or name == "UNKNOWN" or note.text in told:
            continue
        told.add(note.text)
        if not any(other in evidence for other in others):
            chosen = name == "TIE"  # by some other module, and no tensor of the attention
            tensor, module = "" if chosen else "k", evidence.partition(" ")[0]
            found = Finding(name, note.step or 0, note.site or 0, tensor, evidence, head=note.head)
            found = placed(trace, found, None, None)
            yield replace(found, code=module) if chosen else found


def _sites_beyond(trace: Trace, step: Step, lane: str, limits: Noise) -> list[int]:
    """The sites of a step that differ by more than rounding, in order."""
    compared = trace.compared(step.number, lane)
    if compared is None:
        return []
    top = largest(compared, len(limits.threshold))
    over: NDArray[np.bool_] = np.any(top > limits.threshold, axis=1)
    for group in step.sites:
        for site, bad in zip(group.sites, group.nonfinite, strict=True):
            over[site] = bool(over[site]) or bool(bad)
    # sites are numbered as they were met; a layer that is met in another shape comes last
    return sorted(np.flatnonzero(over).tolist(), key=lambda site: turn_of(trace.site(site)))


def _lost_numbers(step: Step) -> Finding | None:
    """Logits that are NaN or Inf although every attention is finite."""
    for sequence, top in enumerate(step.top):
        if not np.isfinite([*top.logits[:1], top.logsumexp]).all():
            evidence = f"the logits of sequence {sequence} are not finite, all attention is"
            last = max(step.attending, default=0)
            return Finding("NONFINITE", step.number, last, "logits", evidence)
    return None
