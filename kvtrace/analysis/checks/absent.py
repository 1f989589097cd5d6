"""Attention that is none in one step: what the next layers' input shows, told where it begins."""

from __future__ import annotations

from dataclasses import replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.spoken import spoken
from kvtrace.trace import OTHER_AXIS, Trace


def where_it_begins(trace: Trace, found: Finding) -> Finding:
    """A finding of another input, moved to attention before it that was none in this step.

    Args:
        trace: Its META says whose softmax ran over another axis, so that nothing was recorded.
        found: Any finding; one that is about something else is given back.
    """
    if found.name != "UPSTREAM":
        return found
    here = {site for group in trace.step(found.step).sites for site in group.sites}
    for site in trace.meta.sites:
        before = found.tensor == "logits" or site.layer < trace.site(found.layer).layer
        astray = f"{site.module}: {OTHER_AXIS}" in trace.meta.not_recorded
        if before and astray and site.index not in here and site.kind == "self":
            return replace(
                found,
                name="WEIGHTS-NOT-NORMALISED",
                layer=site.index,
                tensor="weights",
                row=None,
                evidence=f"no softmax over the keys was seen in {site.module} in this step, one "
                f"over another axis was; what follows it differs ({found.evidence})",
                code=", ".join(filter(None, (site.module, site.code))),
                spoken=spoken(trace.meta, site.index),
            )
    return found
