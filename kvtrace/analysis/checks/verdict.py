"""The whole question: are the lanes equal, and if not, where do they part and why?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.around.survey import Survey
from kvtrace.analysis.checks.noise import Noise, noise
from kvtrace.analysis.checks.placed import of_its_place, placed
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding, Report, Trial
from kvtrace.analysis.checks.telling import Telling, Told
from kvtrace.analysis.checks.walk import findings
from kvtrace.analysis.checks.whole_run.begun_late import begun_late, cached_before
from kvtrace.analysis.checks.whole_run.few_bits import in_few_bits
from kvtrace.analysis.checks.whole_run.first_alone import first_alone
from kvtrace.analysis.checks.whole_run.leftover import leftover
from kvtrace.analysis.course import course
from kvtrace.errors import TraceError
from kvtrace.trace import RECOVERED, SET_WITHIN, STOPPED, WEIGHTS_CHANGED, Trace


def check(
    trace: Trace,
    lane: str = "recomputed",
    on_finding: Told | None = None,
    at_least: Noise | None = None,
    on_step: Callable[[int], None] | None = None,
    fresh: Mapping[int, int] | None = None,
) -> Report:
    """Compare the cached lane with another one.

    Reads the trace step by step; nothing of it is kept.

    Args:
        trace: With comparisons of `lane`; with its passes too, for a diagnosis.
        lane: The reference.
        on_finding: Told of each finding as soon as it is found.
        at_least: What counted as rounding in another run of the model, with a referee.
        on_step: Told the number of each step before it is looked at.
        fresh: Rows beyond its own that a text began with in the first run, as `leftover.beyond`
            counts them.
    """
    why = _hopeless(trace, lane)
    if why:
        alone = _told_alone(trace, fresh)
        if alone is None:
            return Report(UNCHECKED, reason=why, keeps_nothing=keeps_nothing(trace))
        caveats = (f"nothing else was compared: {why}",)
        return Report(DIVERGED, (alone,), noise(trace, lane).reason, caveats=caveats)
    survey, trouble = Survey(trace, lane, on_step), ""
    telling = Telling(trace, on_finding)
    limits: Noise | None = None
    try:
        limits = _raised(noise(trace, lane), at_least)
        rounded = in_few_bits(trace, lane, limits)
        limits = limits if rounded is None else rounded[1]
        for each in findings(trace, lane, limits, survey, fresh):
            telling.of(of_its_place(trace, each))
        if rounded is not None and rounded[0] is not None:
            telling.of(placed(trace, rounded[0], limits, lane))
    except TraceError as error:
        trouble = str(error)
    if not telling.by_hooks:
        telling.now()
    return _report(trace, survey, telling, limits, trouble)


def checked(
    trace: Trace,
    path: str = "",
    at_least: Noise | None = None,
    fresh: Mapping[int, int] | None = None,
) -> Trial:
    """A trace as one of several runs that were checked.

    Args:
        trace: The run.
        path: As the caller can open it.
        at_least: What counted as rounding in another run of the model.
        fresh: Rows beyond its own that a text began with in the first run.
    """
    report = check(trace, at_least=at_least, fresh=fresh)
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
        why = f": {trace.meta.not_recorded[0]}" if trace.meta.not_recorded else ""
        return f"{trace.name} has no steps{why}"
    if not meta.sites:
        text = f"no attention was seen in {meta.model.class_name or 'the model'}"
        return f"{text}: {meta.unseen[0]}" if meta.unseen else f"{text}, so no KV cache either"
    if late := begun_late(trace):
        return late
    compared = meta.lane(lane) is not None and any(
        trace.compared(number, lane) is not None for number in trace.numbers
    )
    return "" if compared else _uncompared(trace, lane)


def _told_alone(trace: Trace, fresh: Mapping[int, int] | None) -> Finding | None:
    """What a run shows that nothing can be held against.

    Rows of another text in its first step, for one: only who knows how the model begins a text can
    tell those, alone a recording may have begun late.
    """
    if not len(trace):
        return None
    begins = trace.step(trace.numbers[0])
    found = leftover(trace, begins, None, fresh) if fresh else None
    found = found or first_alone(trace)
    return None if found is None else placed(trace, found, None, None)


def _uncompared(trace: Trace, lane: str) -> str:
    """Why no step was compared, and what to do."""
    if trace.ending is None or trace.ending.reason == RECOVERED:
        return _early(trace) or (
            f"{trace.name} is incomplete: it ends before its {lane} lane was computed"
        )
    first = trace.step(trace.numbers[0])
    held = [group.length_before for group in first.caches]
    if first.parent is None and held and min(held) > 0:
        return cached_before(first, min(held))
    if keeps_nothing(trace):
        return _no_cache(trace)
    said = [note.text for note in trace.notes if note.kind == "note"]
    notes = [text for text in said if lane in text or text.endswith(WEIGHTS_CHANGED)]
    if notes:
        return notes[0]
    again = "record it again without `--recompute off`, or run `kvtrace check MODEL PROMPT`"
    if trace.meta.lane(lane) is None:
        return f"{trace.name} has only the cached lane, nothing to hold it against; {again}"
    return f"no step of {trace.name} was compared with its {lane} lane; {again}"


def _report(
    trace: Trace, survey: Survey, telling: Telling, limits: Noise | None, trouble: str
) -> Report:
    """The verdict over what was seen."""
    reason, found = "" if limits is None else limits.reason, telling.found
    verdict = DIVERGED if any(one.kind.bug for one in found) else EQUAL
    if telling.by_hooks:
        reason = (
            f"step {found[0].step} differs, but up to step {telling.hooked} the model had other "
            "hooks than when the tokens were recomputed; keep them on, or off, for the whole "
            "recording"
        )
        return Report(UNCHECKED, (), reason, steps=survey.compared, logits=survey.logits)
    banner = trace.meta.model.banner  # heads of a rank that is missing, weights left random
    caveats = (banner, *survey.caveats) if banner else survey.caveats
    if verdict == EQUAL:
        gap = trouble or _chosen(found) or _gap(trace, survey)
        if gap:
            verdict, reason = UNCHECKED, gap
    lost = f"damaged: {trouble.rstrip('.')}" if trouble else _lost(trace)
    if lost and lost not in reason:
        caveats = (lost, *caveats)
    if copied := _not_copied(trace):
        caveats = (copied, *caveats)
    return Report(
        verdict,
        tuple(found),
        reason,
        survey.largest,
        tuple(survey.flips),
        survey.compared,
        survey.logits,
        caveats,
        limits=None if verdict == UNCHECKED else limits,
        keeps_nothing=verdict == UNCHECKED and keeps_nothing(trace),
    )


def _chosen(found: Sequence[Finding]) -> str:
    """From where on a cache has rows of its own choice, which no lane has; empty: it does not."""
    first = next((one for one in found if one.name == "EVICTED-BY-CHOICE"), None)
    if first is None:
        return ""
    before = f"before step {first.step} all is equal within rounding; " if first.step else ""
    return f"{before}from there on {first.kind.means}, at {first.where}: {first.evidence}"


def _gap(trace: Trace, survey: Survey) -> str:
    """What keeps equal steps from being a pass; empty when nothing does."""
    every = survey.compared + len(survey.missing)
    equal = f"{survey.compared} of {every} steps were compared and are equal within rounding"
    if survey.missing:
        missing, lane = survey.missing[0], f"{survey.lane} lane: "
        of_it = [n.text for n in trace.notes if n.step == missing and n.text.startswith(lane)]
        set_within = [n.text for n in trace.notes if n.text.endswith(SET_WITHIN)]
        mine = filter(None, [survey.why.get(missing, "")])
        said = dict.fromkeys([*set_within, *mine, *(text.removeprefix(lane) for text in of_it)])
        why = "".join(f": {text}" for text in said)
        return f"{equal}; step {missing} is the first that was not{why}"
    if lost := _lost(trace):
        return f"{equal}, but {lost}"
    if not survey.reused:
        return _no_cache(trace)
    left = [trace.site(index).module for index in survey.uncompared_sites]
    if left and survey.logits < survey.compared:
        # equal logits would have answered for what was not compared
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        return f"{equal}, but {left[0]}{more} could not be compared, nor all logits"
    return ""


def _lost(trace: Trace) -> str:
    """What is missing of a trace, in words; empty: nothing is."""
    if trace.damage:
        more = f", and {len(trace.damage) - 1} more" if len(trace.damage) > 1 else ""
        return f"{trace.name} is damaged: {trace.damage[0].text}{more}"
    if trace.missing:
        return f"{trace.name} is incomplete: {trace.missing[0]}"
    if trace.ending is None:
        return _early(trace) or (
            f"{trace.name} is incomplete: the first {len(trace)} steps are there"
        )
    return ""


def _early(trace: Trace) -> str:
    """Why the recording ended before the program did, as it says itself; empty: it does not."""
    said = next((note.text for note in trace.notes if note.text.startswith(STOPPED)), "")
    return f"{trace.name} is incomplete: {said}" if said else ""


def _not_copied(trace: Trace) -> str:
    """What a recovered trace says that it lacks; empty: nothing. What was compared is in it."""
    lost = [note.text for note in trace.not_recovered]
    if not lost:
        return ""
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    return f"{trace.name} is a copy; {lost[0].rstrip('.')}{more}"


def keeps_nothing(trace: Trace) -> bool:
    """Whether attention was seen step after step, and none of it read a cache."""
    layers = trace.meta.cache_layers
    return len(trace) > 1 and all(one.kind == "uncached" for one in layers)


def _no_cache(trace: Trace) -> str:
    """No attention was given a row of an earlier step."""
    if len(trace) == 1:
        return f"{trace.name} has one step, which reads nothing from a cache; decode some tokens"
    name = trace.meta.model.class_name
    if any(layer.held for layer in trace.meta.cache_layers):
        return f"no step of {name} goes on with what one before it cached: each computes all rows"
    later = [trace.step(number).new for number in trace.numbers[1:]]
    what = (
        "of one token each read no row before it" if set(later) == {1} else "compute every row anew"
    )
    return f"no KV cache was at work in {name}: its steps {what}"
