"""Walks a trace in causal order and names what it meets: step, then layer, then tensor.

Reads one step at a time and stops where everything later is a consequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.classes import KINDS
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.noise import Noise, largest
from kvtrace.analysis.checks.placed import named, placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.cross import stale_cross
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.analysis.checks.whole_run.absent import calls_shifted, some_absent, where_it_begins
from kvtrace.analysis.checks.whole_run.ahead import ahead
from kvtrace.analysis.checks.whole_run.begin import begins
from kvtrace.analysis.checks.whole_run.doubt import doubtful
from kvtrace.analysis.checks.whole_run.encoders import cached_again, encoded_anew
from kvtrace.analysis.checks.whole_run.forgotten import Forgotten
from kvtrace.analysis.checks.whole_run.later import reconsidered
from kvtrace.analysis.checks.whole_run.leftover import leftover
from kvtrace.analysis.checks.whole_run.more_causes import beside
from kvtrace.analysis.checks.whole_run.padded import padded_inside
from kvtrace.analysis.checks.whole_run.survey import NAMES, Survey
from kvtrace.analysis.checks.whole_run.unused import FedAgain
from kvtrace.errors import TraceError
from kvtrace.trace import Site, Step, Tensor, Trace

_STEPS_SEARCHED = 64
Turn = tuple[bool, int, bool]
"""When a site attends within a step, as `_turn` says."""

_LOGITS_TIMES = 50.0
"""Logits gather the rounding of a whole row of hidden numbers, on top of all layers'."""

_UNSEEN_TIMES = 2.0
"""The same in narrow types, where some attention was not seen."""

_LOGITS_APART = 0.01
"""Less changes no probability by more than a hundredth of itself."""

_VAGUE = ("UNKNOWN", "CONTENT", "UPSTREAM", "POSITION-EMBEDDING")


def findings(
    trace: Trace,
    lane: str,
    limits: Noise,
    survey: Survey,
    fresh: Mapping[int, int] | None = None,
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
    looking = ahead(trace, lane, limits, told)
    causes, searched, astray = _Causes(trace), 0, False
    later: Finding | None = None
    fed, texts = FedAgain(), _Texts(trace, lane, limits, fresh)
    for step in causes.steps():
        survey.add(step)
        fed.add(step)
        looking.add(step)
        here = texts.add(step, looking=not (astray or causes.of_all(step)))
        yield from here
        texts.tell(survey)
        foreign = {one.name for one in here}
        astray = astray or texts.astray
        if astray or searched >= _STEPS_SEARCHED:
            continue
        places = _sites_beyond(trace, step, lane, limits)
        if not places and not causes.of_all(step):
            broken = _lost_numbers(step)
            later = later or _after_attention(trace, step, lane, limits)
            if broken is not None:
                astray = True
                yield placed(trace, broken, None, None)
        places = causes.before(step, looking.left(places))
        rest = causes.unknown(step, texts.padded)
        # the first site that has something to say: a row may differ that nobody looks at
        each = (looking.beside(_at(trace, step, place, rest, lane, limits)) for place in places)
        here = [reconsidered(trace, one, lane, limits) for one in next(filter(None, each), [])]
        here = [one for one in here if causes.news(step, one)]
        for one in here:
            since = "" if causes.first is not None else begins(trace, step.number, one.layer)
            if one.name not in foreign:
                yield replace(where_it_begins(trace, one), since=since)
        causes.add(step, here)
        yield from causes.others(looking.beside(beside(trace, step, here, lane, limits)))
        searched += bool(places)
    if later is not None and causes.first is None:
        yield where_it_begins(trace, later)
    unused, survey.again = fed.finding(trace), fed.once
    if unused is not None:
        yield placed(trace, unused, None, None)


@dataclass(slots=True)
class _Causes:
    """What was found so far, and where something else may still be found.

    Behind the first divergence, all that comes after it in a step differs, and in later steps all
    layers do from there on. What comes before it is right, until it has a cause of its own.

    Attributes:
        trace: Whose steps.
        first: The earliest turn within a step at which something was found; None: nothing was.
    """

    trace: Trace
    first: Turn | None = None
    _explained: set[int] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)

    def of_all(self, step: Step) -> bool:
        """Whether every sequence of a step has its cause."""
        return self._explained >= set(range(step.num_sequences))

    def steps(self) -> Iterator[Step]:
        """All steps; sequences that go on from an explained one, as beams do, are explained too."""
        for step in self.trace:
            self._explained |= {n for n, one in enumerate(step.order) if one in self._explained}
            yield step

    def before(self, step: Step, places: list[int]) -> list[int]:
        """Sites that nothing found so far explains."""
        first = self.first
        if first is None or not self.of_all(step):
            return places
        return [site for site in places if _turn(self.trace.site(site)) < first]

    def unknown(self, step: Step, padded: set[int]) -> list[int]:
        """Sequences to look at."""
        explained = set() if self.of_all(step) else self._explained
        return [n for n in range(step.num_sequences) if n not in explained | padded]

    def news(self, step: Step, found: Finding) -> bool:
        """Whether a finding is more than the first one again; vague ones come first or not."""
        if found.name in _VAGUE:
            return self.first is None
        return not self.of_all(step) or found.name not in self._names

    def add(self, step: Step, here: Sequence[Finding]) -> None:
        """Findings of a step, at one site."""
        for one in here:
            turn = _turn(self.trace.site(one.layer))
            self.first = turn if self.first is None else min(self.first, turn)
            self._explained |= set(one.sequences or range(step.num_sequences))
            self._names.add(one.name)

    def others(self, found: Iterable[Finding]) -> Iterator[Finding]:
        """Causes beside those, each remembered."""
        for one in found:
            if one.name not in self._names:
                self._names.add(one.name)
                yield one


@dataclass(slots=True)
class _Texts:
    """Where texts begin, and what is left of those before; both lanes may hold it.

    Attributes:
        trace, lane, limits, fresh: As `findings` was given them.
        padded: Sequences of the text under way that are padded behind or within it.
        astray: A text was taken for the rest of another: its lanes are compared for nothing.
    """

    trace: Trace
    lane: str
    limits: Noise
    fresh: Mapping[int, int] | None
    padded: set[int] = field(default_factory=set)
    astray: bool = False
    _stale: bool = False
    _before: Step | None = None
    _lost: Forgotten = field(init=False)

    def __post_init__(self) -> None:
        self._lost = Forgotten(self.trace)

    def tell(self, survey: Survey) -> None:
        """Tell what the comparison of lanes does not cover."""
        survey.padded |= self.padded
        survey.apart = 0 if self._lost.named else self._lost.apart

    def add(self, step: Step, *, looking: bool) -> list[Finding]:
        """What the next step shows; of rows of another text only as long as somebody looks."""
        before, self._before = self._before, step
        if step.parent is None:
            self.padded = set()
        try:
            found = self._seen(step, before, looking=looking)
        except TraceError:
            found = []  # what can't be read is told of where lanes are compared
        return [placed(self.trace, one, None, None) for one in found]

    def _seen(self, step: Step, before: Step | None, *, looking: bool) -> list[Finding]:
        trace = self.trace
        lost, other = self._lost.add(step, before), None
        self.padded |= set(padded_inside(trace, step))
        if looking and not self._stale:
            other = (
                encoded_anew(trace, step)
                or cached_again(trace, step)
                or leftover(trace, step, before, self.fresh)
            )
        if other is not None and step.parent is None and self._known_better(step, other):
            other = None
        self._stale = self._stale or other is not None
        self.astray = other is not None and step.parent is not None and step.new > 1
        return [one for one in (lost, other) if one is not None]

    def _known_better(self, step: Step, found: Finding) -> bool:
        """Whether comparing lanes tells whose rows were there before a text began."""
        everyone = list(range(step.num_sequences))
        said = _at(self.trace, step, found.layer, everyone, self.lane, self.limits)
        names = {one.name for one in said} - {*_VAGUE, found.name}
        # the tokens of another prompt may be the same ones
        return bool(names & {"WRONG-LAYER", "WRONG-BATCH-ROW"} if self.fresh else names)


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
            last = max((site for group in step.sites for site in group.sites), default=0)
            evidence = (
                f"the logits of sequence {sequence} differ by {one.max_abs:.3g}, the highest "
                f"are up to {size:.3g}"
            )
            found = Finding("UPSTREAM", step.number, last, "logits", evidence)
            whose = spoken(trace.meta, last)
            return replace(found, apart=one.max_abs / size, limit=limit, spoken=whose)
    return None


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
    return sorted(np.flatnonzero(over).tolist(), key=lambda site: _turn(trace.site(site)))


def _turn(site: Site) -> Turn:
    """When a site attends within a step: encoders first, in a layer self before cross."""
    return site.kind != "encoder", site.layer, site.kind == "cross"


def _at(
    trace: Trace, step: Step, layer: int, sequences: list[int], lane: str, limits: Noise
) -> list[Finding]:
    """What is wrong at one site, sequences that show the same together."""
    shifted = calls_shifted(trace, step, layer, lane)
    if shifted is not None:
        return [placed(trace, shifted, limits, lane)]
    tolerance = float(limits.threshold[layer].max())
    groups: dict[str, list[Finding]] = {}
    staged = True
    for sequence in sequences:
        scene = stage(trace, step.number, layer, sequence, tolerance, lane)
        staged = staged and scene is not None
        one = named(diagnose, scene)
        if one is not None:
            groups.setdefault(one.name, []).append(replace(one, sequences=(sequence,)))
    if not groups:
        unknown = _broken(trace, step, layer, sequences) or stale_cross(trace, step.number, layer)
        if unknown is None:
            unknown = _unexplained(trace, step, layer, lane, limits, sequences if staged else None)
        out = [] if unknown is None else [placed(trace, unknown, limits, lane)]
        return [one for one in out if not doubtful(trace, one, lane)]
    out = []
    for same in groups.values():
        rows = tuple(sorted(n for one in same for n in one.sequences))
        everyone = len(rows) == step.num_sequences
        found = replace(same[0], sequences=() if everyone else rows)
        out.append(placed(trace, found, limits, lane, same[0].sequences[0]))
    return [one for one in out if not doubtful(trace, one, lane)]


def _unexplained(
    trace: Trace,
    step: Step,
    layer: int,
    lane: str,
    limits: Noise,
    staged: list[int] | None,
) -> Finding | None:
    """The difference itself, where no signature speaks.

    Once the rows of the `staged` sequences were looked at, keys and values that differ are rows
    that no query sees, and the other sequences have been explained.
    """
    compared = trace.compared(step.number, lane)
    if compared is None:
        return None
    relative: NDArray[np.float64] = np.asarray(compared.relative[layer], np.float64)
    beyond = relative > limits.threshold[layer][:, None]
    if staged is not None:
        beyond[[Tensor.KEYS, Tensor.VALUES]] = False
        beyond &= np.isin(compared.sequence[layer], staged)
    over = np.argwhere(beyond)
    if not len(over):
        return None
    tensor, head = (int(n) for n in over[0])
    letter = NAMES[Tensor(tensor)]
    evidence = f"{letter} is off by {relative[tensor, head]:.2g} of its largest"
    return Finding("UNKNOWN", step.number, layer, letter, evidence, head=head)


def _broken(trace: Trace, step: Step, layer: int, sequences: list[int]) -> Finding | None:
    """NaN or Inf in rows of real tokens, where the other lane has them too."""
    group = step.site_step(trace.site(layer).index)
    if group is None or not group.nonfinite[group.sites.index(trace.site(layer).index)]:
        return None
    for sequence in sequences:
        live = np.array(step.positions[sequence]) >= 0
        for tensor in Tensor:
            rows = trace.rows(step.number, layer, tensor, sequence)
            if rows is None or rows.shape[1] != len(live):
                continue
            bad = ~np.isfinite(rows[:, live])
            if bad.any():
                head, row, dim = (int(n) for n in np.argwhere(bad)[0])
                count = f"{int(bad.sum())} number{'s' if bad.sum() > 1 else ''}"
                evidence = (
                    f"{count} of {NAMES[tensor]} without and with the cache, "
                    f"first in head {head}, feature {dim}: the model itself makes them"
                )
                at = (step.number, layer, NAMES[tensor])
                return Finding("NONFINITE", *at, evidence, head, row)
    return None


def _lost_numbers(step: Step) -> Finding | None:
    """Logits that are NaN or Inf although every attention is finite."""
    for sequence, top in enumerate(step.top):
        if not np.isfinite([*top.logits[:1], top.logsumexp]).all():
            evidence = f"the logits of sequence {sequence} are not finite, all attention is"
            last = max((site for group in step.sites for site in group.sites), default=0)
            return Finding("NONFINITE", step.number, last, "logits", evidence)
    return None
