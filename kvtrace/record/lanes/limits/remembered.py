"""Texts that begin, or go on, behind a memory: the other lane has their tokens alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrace.analysis.checks.whole_run.remembered import remembered
from kvtrace.errors import TraceError
from kvtrace.record.lanes.given.handed import Handed
from kvtrace.record.lanes.limits.hidden import Hidden
from kvtrace.trace import HANDED_BACK, SET_WITHIN, Step, Trace


@dataclass(slots=True)
class Memories:
    """Steps behind a memory: those that begin there, and those that go on with them.

    Attributes:
        handed: State that steps handed back, and later ones were given.
    """

    handed: Handed
    _steps: set[int] = field(default_factory=set)
    _named: set[str] = field(default_factory=set)

    def look(self, trace: Trace, step: Step) -> tuple[set[Hidden], str]:
        """Sequences of a step that are not compared, and what is said where it is the first.

        Args:
            trace: Whose step.
            step: The next one.
        """
        text, name = "", self.handed.state(trace, step)
        if step.parent not in self._steps:
            text = _begins(trace, step)
            if name and name not in self._named:
                text = text or _goes_on(step.number, name)
                self._named.add(name)
            if not (text or name):
                return set(), ""
        self._steps.add(step.number)
        return {(step.number, row) for row in range(step.num_sequences)}, text


def _goes_on(number: int, name: str) -> str:
    """What is said of the first step that is given state."""
    return (
        f"step {number} goes on with `{name}`, {HANDED_BACK} (a memory of segments, say), and no "
        f"other pass has it: {SET_WITHIN}"
    )


def _begins(trace: Trace, step: Step) -> str:
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
