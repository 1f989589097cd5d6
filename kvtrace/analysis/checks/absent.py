"""Attention that is none in one step: what the next layers' input shows, told where it begins."""

from __future__ import annotations

from dataclasses import replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.spoken import spoken
from kvtrace.trace import OTHER_AXIS, Site, Trace


def where_it_begins(trace: Trace, found: Finding) -> Finding:
    """A finding of another input, moved to attention before it that was none in this step.

    Args:
        trace: Its META says whose softmax ran over another axis, or what else was not seen.
        found: Any finding; one that is about something else is given back.
    """
    site = _absent(trace, found) if found.name == "UPSTREAM" else None
    if site is None:
        return found
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


def _absent(trace: Trace, found: Finding) -> Site | None:
    """The first attention before a finding that was seen in other steps, and not in its own."""
    group = trace.step(found.step).sites
    here = {trace.site(site).layer for one in group for site in one.sites}
    for site in sorted(trace.meta.sites, key=lambda one: one.layer):
        before = found.tensor == "logits" or site.layer < trace.site(found.layer).layer
        if before and site.kind == "self" and site.layer not in here:
            return site
    return None


def _why(trace: Trace, site: Site, module: str) -> tuple[str, str, str]:
    """(kind, tensor, evidence) of attention that was not seen in a step."""
    if f"{site.module}: {OTHER_AXIS}" in trace.meta.not_recorded:
        seen = f"no softmax over the keys was seen in {site.module} in this step, one over another"
        return "WEIGHTS-NOT-NORMALISED", "weights", f"{seen} axis was"
    told = next((one for one in trace.meta.unseen if one.startswith(f"{module} (")), "")
    if "dropout" in told:
        seen = f"attention of {module} drops weights out in this step"
        return "WEIGHTS-NOT-NORMALISED", "weights", f"{seen}, and was not recorded for it"
    more = f" ({told})" if told else ""
    return "UNKNOWN", "output", f"attention of {module} was not seen in this step{more}"
