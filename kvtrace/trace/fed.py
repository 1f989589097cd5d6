"""The token that was chosen after a step, by what the steps that go on from it were fed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrace.trace.trace import Trace

_CHILDREN = 8
"""Steps that go on from one and are looked at: those of texts that take turns."""


def fed_after(trace: Trace, number: int, sequence: int) -> int | None:
    """The token fed next to a sequence; None: nobody went on, or several, with other tokens.

    Texts that are decoded in turns have each other's steps in between. Where the very next step
    goes on from this one, others that do so later took another way than the run itself.
    """
    overview = trace.overview
    children = overview["number"][overview["parent"] == number].tolist()
    later = overview["number"][overview["number"] > number]
    if len(later) and later[0] in children:
        children = [int(later[0])]
    fed = {_first(trace, child, sequence) for child in children[:_CHILDREN]}
    return fed.pop() if len(fed) == 1 else None


def _first(trace: Trace, child: int, sequence: int) -> int | None:
    step = trace.step(child)
    reordered = any(event.kind != "crop" for event in step.events)
    if step.phase != "decode" or sequence >= step.num_sequences or not step.new or reordered:
        return None
    return step.tokens[sequence][0]
