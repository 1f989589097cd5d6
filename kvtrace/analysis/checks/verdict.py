"""The whole question: are the lanes equal, and if not, where do they part and why?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.begin import begins
from kvtrace.analysis.checks.classes import KINDS
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.noise import Noise, largest, noise
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding, Report, Trial
from kvtrace.analysis.checks.scene import Scene, Side
from kvtrace.analysis.checks.stage import stage
from kvtrace.analysis.checks.survey import NAMES, Survey
from kvtrace.analysis.course import course
from kvtrace.errors import TraceError
from kvtrace.trace import Step, Tensor, Trace

_STEPS_SEARCHED = 64

Told = Callable[[Finding], None]


def check(
    trace: Trace,
    lane: str = "recomputed",
    on_finding: Told | None = None,
    at_least: Noise | None = None,
) -> Report:
    """Compare the cached lane with another one.

    Reads the trace step by step; nothing of it is kept.

    Args:
        trace: With comparisons of `lane`; with its passes too, for a diagnosis.
        lane: The reference.
        on_finding: Told of each finding as soon as it is found.
        at_least: What counted as rounding in another run of the model, with a referee.
    """
    why = _hopeless(trace, lane)
    if why:
        return Report(UNCHECKED, reason=why)
    survey, found, trouble = Survey(trace, lane), [], ""
    reason = ""
    try:
        limits = _raised(noise(trace, lane), at_least)
        reason = limits.reason
        for one in findings(trace, lane, limits):
            found.append(one)
            if on_finding is not None:
                on_finding(one)
        for step in trace:
            survey.add(step)
    except TraceError as error:
        trouble = str(error)
    return _report(trace, survey, found, reason, trouble)


def checked(
    trace: Trace,
    path: str = "",
    on_finding: Told | None = None,
    at_least: Noise | None = None,
) -> Trial:
    """A trace as one of several runs that were checked.

    Args:
        trace: The run.
        path: As the caller can open it.
        on_finding: Told of each finding as soon as it is found.
        at_least: What counted as rounding in another run of the model.
    """
    report = check(trace, on_finding=on_finding, at_least=at_least)
    return Trial(course(trace), report, path)


def _raised(limits: Noise, at_least: Noise | None) -> Noise:
    """The larger thresholds of the two, where both are about the same sites."""
    if at_least is None or at_least.threshold.shape != limits.threshold.shape:
        return limits
    return replace(limits, threshold=np.fmax(limits.threshold, at_least.threshold))


def _hopeless(trace: Trace, lane: str) -> str:
    """Why nothing can be compared; empty when something can."""
    meta = trace.meta
    if not len(trace):
        return f"{trace.name} has no steps"
    if not meta.sites:
        text = f"no attention was seen in {meta.model.class_name or 'the model'}"
        return f"{text}: {meta.unseen[0]}" if meta.unseen else f"{text}, so no KV cache either"
    compared = meta.lane(lane) is not None and any(
        trace.compared(number, lane) is not None for number in trace.numbers
    )
    return "" if compared else _uncompared(trace, lane)


def _uncompared(trace: Trace, lane: str) -> str:
    """Why no step was compared, and what to do."""
    if trace.ending is None:
        return f"{trace.name} is incomplete: it ends before its {lane} lane was computed"
    notes = [note.text for note in trace.notes if note.kind == "note" and lane in note.text]
    if notes:
        return notes[0]
    again = "record it again without `--recompute off`, or run `kvtrace check MODEL PROMPT`"
    if trace.meta.lane(lane) is None:
        return f"{trace.name} has only the cached lane, nothing to hold it against; {again}"
    return f"no step of {trace.name} was compared with its {lane} lane; {again}"


def _report(
    trace: Trace, survey: Survey, found: list[Finding], reason: str, trouble: str
) -> Report:
    """The verdict over what was seen."""
    verdict = DIVERGED if any(one.kind.bug for one in found) else EQUAL
    caveats = survey.caveats
    if trouble:
        caveats = (f"damaged: {trouble}", *caveats)
    if trace.ending is None or trace.damage:
        caveats = (f"{trace.name} is incomplete: the first {len(trace)} steps are there", *caveats)
    if verdict == EQUAL:
        gap = trouble or _gap(trace, survey)
        if gap:
            verdict, reason = UNCHECKED, gap
    return Report(
        verdict,
        tuple(found),
        reason,
        survey.largest,
        tuple(survey.flips),
        survey.compared,
        survey.logits,
        caveats,
    )


def _gap(trace: Trace, survey: Survey) -> str:
    """What keeps equal steps from being a pass; empty when nothing does."""
    every = survey.compared + len(survey.missing)
    equal = f"{survey.compared} of {every} steps were compared and are equal within rounding"
    if survey.missing:
        return f"{equal}; step {survey.missing[0]} is the first that was not"
    if trace.ending is None or trace.damage:
        return f"{equal}, but {trace.name} is incomplete"
    if not survey.reused:
        return _no_cache(trace)
    if len(survey.uncompared_sites) == sum(site.kind == "self" for site in trace.meta.sites):
        return "no attention of the model could be compared with the other lane"
    return ""


def _no_cache(trace: Trace) -> str:
    """No attention was given a row of an earlier step."""
    if len(trace) == 1:
        return f"{trace.name} has one step, which reads nothing from a cache; decode some tokens"
    return f"{trace.meta.model.class_name} has no KV cache: its steps compute every row anew"


def findings(trace: Trace, lane: str, limits: Noise) -> Iterator[Finding]:
    """Findings as they are met, in causal order: step, then layer, then tensor."""
    yield from _said_by_the_recorder(trace)
    explained: set[int] = set()
    searched = 0
    for number in trace.numbers:
        step = trace.step(number)
        places = _sites_beyond(trace, step, lane, limits)
        if not places:
            lost = _lost_numbers(step)
            if lost is None:
                continue
            yield _placed(trace, lost, None, None)
            break
        rest = [n for n in range(step.num_sequences) if n not in explained]
        # the first site that has something to say: a row may differ that nobody looks at
        each = ((place, _at(trace, step, place, rest, lane, limits)) for place in places)
        place, here = next(((place, said) for place, said in each if said), (0, []))
        for one in here:
            since = "" if explained else begins(trace, number, place)
            yield replace(one, since=since)
            explained |= set(one.sequences or range(step.num_sequences))
        searched += 1
        if explained >= set(range(step.num_sequences)) or searched >= _STEPS_SEARCHED:
            break
    yield from _not_used(trace)


def _said_by_the_recorder(trace: Trace) -> Iterator[Finding]:
    """Findings written while the lanes were compared, such as shapes that differ.

    People note findings of their own, in their own words: those name no kind of divergence.
    """
    for note in trace.notes:
        name, _, evidence = note.text.partition(": ")
        if note.kind == "finding" and name in KINDS:
            found = Finding(name, note.step or 0, note.site or 0, "k", evidence, head=note.head)
            yield _placed(trace, found, None, None)


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
    return [int(site) for site in np.flatnonzero(over)]


def _at(
    trace: Trace, step: Step, layer: int, sequences: list[int], lane: str, limits: Noise
) -> list[Finding]:
    """What is wrong at one site, sequences that show the same together."""
    tolerance = float(limits.threshold[layer].max())
    groups: dict[str, list[Finding]] = {}
    staged = True
    for sequence in sequences:
        scene = stage(trace, step.number, layer, sequence, tolerance, lane)
        staged = staged and scene is not None
        one = diagnose(scene) if scene is not None and _finite(scene.reference, scene) else None
        if one is not None:
            groups.setdefault(one.name, []).append(replace(one, sequences=(sequence,)))
    if not groups:
        unknown = _broken(trace, step, layer, sequences)
        if unknown is None:
            unknown = _unexplained(trace, step, layer, lane, limits, sequences if staged else None)
        return [] if unknown is None else [_placed(trace, unknown, limits, lane)]
    out = []
    for same in groups.values():
        rows = tuple(sorted(n for one in same for n in one.sequences))
        everyone = len(rows) == step.num_sequences
        found = replace(same[0], sequences=() if everyone else rows)
        out.append(_placed(trace, found, limits, lane, same[0].sequences[0]))
    return out


def _placed(
    trace: Trace, found: Finding, limits: Noise | None, lane: str | None, sequence: int = 0
) -> Finding:
    """A finding with what the trace knows of its place: how far apart, slot, source line."""
    sites = trace.meta.sites
    if not 0 <= found.layer < len(sites):
        return found
    site = sites[found.layer]
    found = replace(found, code=", ".join(filter(None, (site.module, site.code))))
    compared = None if lane is None else trace.compared(found.step, lane)
    if compared is not None and limits is not None and found.name != "NONFINITE":
        here = largest(compared, len(sites))[found.layer]
        if np.isfinite(here).any():
            worst = int(np.nanargmax(here / limits.threshold[found.layer]))
            limit = float(limits.threshold[found.layer, worst])
            found = replace(found, apart=float(here[worst]), limit=limit)
    if found.slot is None and found.row is not None and found.tensor in ("k", "v"):
        found = replace(found, slot=_slot(trace, found, sequence))
    return found


def _slot(trace: Trace, found: Finding, sequence: int) -> int | None:
    """Slot of an attended row."""
    row = found.row or 0
    for run in trace.cache_step(found.step, found.layer).attended[sequence]:
        if row < run.count:
            return run.slot + row
        row -= run.count
    return None


def _finite(side: Side, scene: Scene) -> bool:
    """Whether the numbers of real tokens are; padding may be anything."""
    live, wanted = scene.live, scene.wanted
    rows = (side.queries[:, live], side.output[:, live])
    return all(bool(np.isfinite(one).all()) for one in rows) and bool(
        np.isfinite(side.keys[:, wanted]).all() and np.isfinite(side.values[:, wanted]).all()
    )


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
                evidence = (
                    f"{int(bad.sum())} numbers of {NAMES[tensor]} without and with the cache, "
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


def _not_used(trace: Trace) -> Iterator[Finding]:
    """Steps that process every token again although there is a cache."""
    if not any(layer.held for layer in trace.meta.cache_layers):
        return
    again = 0
    before: tuple[int, ...] = ()
    for number in trace.numbers:
        tokens = trace.step(number).tokens[0]
        again += bool(before) and len(tokens) > len(before) > 1 and tokens[: len(before)] == before
        before = tokens
    if again > 1 and again == len(trace) - 1:
        evidence = f"{again} steps fed all tokens again, the last one {len(before)}"
        found = Finding("CACHE-NOT-USED", int(trace.numbers[1]), 0, "k", evidence)
        yield _placed(trace, found, None, None)
