"""Texts with hidden tokens behind others: from there on they are not compared.

The other lane runs over all tokens of a path and hides those at its left alone, so that later rows
would see other ones, at other positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kvtrace.analysis.checks.whole_run.padded import padded_inside
from kvtrace.errors import TraceError
from kvtrace.record.lanes.as_it_was.settings import Settings
from kvtrace.record.lanes.paths import Path
from kvtrace.trace import Step, Trace

Hidden = tuple[int, int]
"""(step, sequence) in which tokens went in that nobody sees."""


def hidden_in(trace: Trace, step: Step) -> Iterator[Hidden]:
    """Sequences of a step in which they did."""
    try:
        yield from ((step.number, sequence) for sequence in padded_inside(trace, step))
    except TraceError:
        return  # what can't be read is told of where rows are read


def ends(path: Path, hidden: Collection[Hidden], settings: Settings) -> int | None:
    """The first step of a path that is not compared; None: all are.

    Args:
        path: It.
        hidden: Steps and sequences with hidden tokens.
        settings: What a program set on the model, within texts too.
    """
    nodes = (*path.shared, *path.nodes) if hidden else ()
    found = [one.step for one in nodes if (one.step, one.sequence) in hidden]
    until = settings.until(path)
    return min(found if until is None else [*found, until], default=None)
