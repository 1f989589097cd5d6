"""Recordings that begin in the midst of a text: no recorded step made the rows it goes on from.

Whoever records only the loop that follows a prompt has such a run. No other lane knows the tokens
before; what differs then is no bug, and where a model keeps its rows inside, nothing may differ.
"""

from __future__ import annotations

from kvtrace.trace import Step, Trace

_OURS = "kvtrace"
"""Who drives a model begins a text with its first step."""


def begun_late(trace: Trace) -> str:
    """Why a run can't be checked that goes on from rows of earlier places; empty: it does not.

    Args:
        trace: With a step at least.
    """
    first = trace.step(trace.numbers[0])
    begins = min((row[0] for row in first.positions if row), default=0)
    if first.parent is not None or begins <= 0 or trace.meta.sampling.driver == _OURS:
        return ""
    # a cache that was seen to be updated says itself what was in it
    known = any(trace.site(site).level == 1 for site in first.attending)
    late = not known and _reads_before(first, begins)
    return cached_before(first, begins) if late else ""


def _reads_before(step: Step, begins: int) -> bool:
    """Whether a step attends to rows of places before its own."""
    runs = (run for group in step.caches for row in group.attended for run in row)
    return any(0 <= run.position < begins for run in runs)


def cached_before(step: Step, rows: int) -> str:
    """That a step reads rows which no recorded step made, and what to do."""
    return (
        f"step {step.number} already reads {rows} rows that were cached before the recording "
        "began, of tokens that it has not seen; record from the first token on (if a new text "
        "begins there, its cache was not reset)"
    )
