"""A text that goes on with an empty cache: nothing is compared wrongly, for nothing is left.

A step that begins a cache begins a text. Where it is told to begin at the very position at which
the step before it ended, it is no new text: the cache was dropped on the way.
"""

from __future__ import annotations

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace


def forgotten(trace: Trace, step: Step, before: Step | None) -> Finding | None:
    """A step that goes on where the one before ended, without any of its rows.

    Args:
        trace: Whose steps.
        step: Any.
        before: The one recorded before it; None: there is none.
    """
    if before is None or step.parent is not None or step.packed is not None:
        return None
    if not step.caches or any(group.length_before for group in step.caches):
        return None
    ends = [row[-1] + 1 for row in before.positions if row]
    starts = [row[0] for row in step.positions if row]
    if not starts or starts != ends or min(starts) < 1:
        return None
    layer = step.caches[0].layers[0]
    site = next((one.index for one in trace.meta.sites if one.reads == layer), 0)
    evidence = (
        f"the step was given position {starts[0]}, where step {before.number} ended, but its cache "
        f"is empty: {starts[0]} rows are missing"
    )
    return Finding("HISTORY-LOST", step.number, site, "k", evidence, row=0)
