"""Layers whose rows can't be compared in a step, where the input of the next ones differs."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.trace import OTHER_AXIS, Site, Step, Tensor, Trace


def where_it_begins(trace: Trace, found: Finding) -> Finding:
    """A finding of another input, moved to attention before it that was none in this step.

    Where there is none, layers before it are named that keep a state in place of rows.

    Args:
        trace: Its META says whose softmax ran over another axis, or what else was not seen.
        found: Any finding; one that is about something else is given back.
    """
    if found.name != "UPSTREAM":
        return found
    site = _absent(trace, found)
    if site is None and found.tensor == "logits" and none_compared(trace, found.step):
        why = "no attention of this step could be compared"
        return replace(found, name="UNKNOWN", evidence=f"{found.evidence}; {why}")
    if site is None:
        return replace(found, evidence=found.evidence + _states(trace, found))
    module = site.module or "the model"
    name, tensor, why = _why(trace, site, module)
    return replace(
        found,
        name=name,
        layer=site.index,
        tensor=tensor,
        row=None,
        evidence=f"{why}; what follows it differs ({found.evidence})",
        code=", ".join(filter(None, (site.module, site.code))),
        spoken=spoken(trace.meta, site.index),
    )


def not_read(trace: Trace, found: Finding) -> bool:
    """Whether logits differ, and attention before them could not be read in that step.

    What it was given is not known then, nor whether it is to blame.
    """
    site = _absent(trace, found)
    told = "" if site is None else _told(trace, site.module or "the model")
    return bool(told) and "dropout" not in told


def _told(trace: Trace, module: str) -> str:
    """Why attention of a module was not read somewhere; empty: it always was."""
    return next((one for one in trace.meta.unseen if one.startswith(f"{module} (")), "")


def none_compared(trace: Trace, step: int) -> bool:
    """Whether logits are all that was compared of a step, in any lane."""
    lanes = [trace.compared(step, lane.name) for lane in trace.meta.lanes]
    return all(one is None or bool(np.isnan(one.max_abs).all()) for one in lanes)


def some_absent(trace: Trace, step: Step) -> bool:
    """Whether self-attention was not seen in a step that was in others."""
    here = {trace.site(site).layer for site in step.attending}
    return any(one.kind == "self" and one.layer not in here for one in trace.meta.sites)


def calls_shifted(trace: Trace, step: Step, layer: int, lane: str) -> Finding | None:
    """A module that attends several times in a forward, of which some were not seen here.

    Its calls are known by their number: those after one that was not seen are taken for others.

    Args:
        trace: Whose step.
        step: It.
        layer: Site of the module.
        lane: The reference.
    """
    site, reference = trace.site(layer), trace.reference(step.number, 0, lane)
    here = set(step.attending)
    calls = [one for one in trace.meta.sites if (one.module, one.kind) == (site.module, site.kind)]
    seen = {one.call for one in calls if one.index in here}
    if reference is None or not seen or len(calls) < 2:
        return None
    right = {one.call for one in calls if reference.rows(one.index, Tensor.QUERIES) is not None}
    if right <= seen:
        return None
    module, (now, then) = site.module or "the model", (_listed(seen), _listed(right))
    evidence = (
        f"attention calls {now} of {module} were seen in this step, {then} without the cache: one "
        "is written in a way that was not seen, here or before, and they can't be told apart"
    )
    return Finding("UNKNOWN", step.number, layer, "output", evidence)


def _listed(calls: set[int]) -> str:
    return ", ".join(map(str, sorted(calls)))


def _absent(trace: Trace, found: Finding) -> Site | None:
    """The first attention before a finding that was seen in other steps, and not in its own."""
    here = {trace.site(site).layer for site in trace.step(found.step).attending}
    for site in sorted(trace.meta.sites, key=lambda one: one.layer):
        before = found.tensor == "logits" or site.layer < trace.site(found.layer).layer
        if before and site.kind == "self" and site.layer not in here:
            return site
    return None


def _states(trace: Trace, found: Finding) -> str:
    """Which layers before a finding keep a state, of which nothing but its size is recorded."""
    logits, end = found.tensor == "logits", trace.site(found.layer).layer
    states = {one.layer for one in trace.meta.cache_layers if one.kind == "state"}
    before = sorted(layer for layer in states if logits or layer < end)
    if not before:
        return ""
    which = f"layer {before[0]}" if len(before) == 1 else f"layers {_listed(set(before))}"
    verb = "keeps" if len(before) == 1 else "keep"
    return f"; {which} before it {verb} a recurrent state, of which only the size is recorded"


def _why(trace: Trace, site: Site, module: str) -> tuple[str, str, str]:
    """(kind, tensor, evidence) of attention that was not seen in a step."""
    if f"{site.module}: {OTHER_AXIS}" in trace.meta.not_recorded:
        seen = f"no softmax over the keys was seen in {site.module} in this step, one over another"
        return "WEIGHTS-NOT-NORMALISED", "weights", f"{seen} axis was"
    told = _told(trace, module)
    if "dropout" in told:
        seen = f"attention of {module} drops weights out in this step"
        return "WEIGHTS-NOT-NORMALISED", "weights", f"{seen}, and was not recorded for it"
    more = f" ({told})" if told else ""
    return "UNKNOWN", "output", f"attention of {module} was not seen in this step{more}"
