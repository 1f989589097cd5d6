"""Texts that begin behind rows which the step makes of what an earlier one left: a memory.

A model with a memory of segments, or one that sums up what it read, keeps hidden states and makes
keys and values of them anew. No pass over the tokens of the segment alone has such rows.
"""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.whole_run.leftover import beyond
from kvtrace.trace import Step, Trace
from kvtrace.trace.view import cells_of


def remembered(trace: Trace, step: Step) -> int:
    """Rows beyond its tokens that no step before attended to, where they are most; 0: it has none.

    A cache that was left over holds rows that an earlier text attended to.

    Args:
        trace: Whose step.
        step: Any; only one that begins a text, and not the first, can show it.
    """
    if step.parent is not None or step.packed is not None or step.number == trace.numbers[0]:
        return 0
    first, most = beyond(trace), 0
    for site, count in beyond(trace, step).items():
        if trace.site(site).level == 1:
            continue  # what a known cache hands over lay in it: rows of an earlier text, if any
        if count > max(0, first.get(site, 0)) and _is_made_here(trace, step, site):
            most = max(most, count)
    return most


def _is_made_here(trace: Trace, step: Step, site: int) -> bool:
    """Whether no step before attended to any of the rows that a site attends to."""
    now = np.unique(np.concatenate(_cells(trace, step, site)))
    for number in trace.numbers:
        if number >= step.number:
            break
        before = trace.step(number)
        if before.site_step(site) is None:
            continue
        if any(np.isin(now, one).any() for one in _cells(trace, before, site)):
            return False
    return True


def _cells(trace: Trace, step: Step, site: int) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Cells that a site attends to, by sequence."""
    return [cells_of(runs) for runs in trace.cache_step(step.number, site).attended]
