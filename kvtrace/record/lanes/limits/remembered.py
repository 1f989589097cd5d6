"""Texts that begin behind a memory: the other lane runs over their tokens alone, and has none."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrace.analysis.checks.whole_run.remembered import remembered
from kvtrace.errors import TraceError
from kvtrace.record.lanes.limits.hidden import Hidden
from kvtrace.trace import SET_WITHIN, Step, Trace


@dataclass(slots=True)
class Memories:
    """Steps behind a memory: those that begin there, and those that go on with them."""

    _steps: set[int] = field(default_factory=set)

    def look(self, trace: Trace, step: Step) -> tuple[set[Hidden], str]:
        """Sequences of a step that are not compared, and what is said where it is the first.

        Args:
            trace: Whose step.
            step: The next one.
        """
        text = "" if step.parent in self._steps else _said(trace, step)
        if not text and step.parent not in self._steps:
            return set(), ""
        self._steps.add(step.number)
        return {(step.number, row) for row in range(step.num_sequences)}, text


def _said(trace: Trace, step: Step) -> str:
    """What is said of a step that begins behind a memory; empty: it does not."""
    try:
        count = remembered(trace, step)
    except TraceError:
        return ""  # what can't be read is told of where rows are read
    if not count:
        return ""
    return (
        f"step {step.number} begins behind {count} rows that it made itself, of what an earlier "
        f"one left (a memory of segments, say), and no other pass has them: {SET_WITHIN}"
    )
