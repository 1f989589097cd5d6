"""Steps that verify drafts: they take in several tokens, of which the next step gives some up.

Somebody's own loop does not say how long its prompt is, so such a step is recorded as what it may
be as well: a part of the prompt. What follows tells. Where every draft stays, nothing does.
"""

from __future__ import annotations

from bisect import bisect_right

from kvtrace.errors import KvtraceError
from kvtrace.trace.source import Source
from kvtrace.trace.step import Step

_NEAR = 8
"""Steps before and after one that are looked at: of drafts, now and then all stay."""


def given_up(source: Source, step: Step, sequence: int) -> bool:
    """Whether the next step wrote over the last token of this one: its logits led nowhere."""
    return _stay(source, step, sequence) is not None


def verifies(source: Source, step: Step) -> bool:
    """Whether a step over rows that are kept, or one of no fewer tokens near it, took in drafts."""
    if not _goes_on(step):
        return False
    numbers = source.step_numbers()
    at = bisect_right(numbers, step.number) - 1
    near = sorted(numbers[max(at - _NEAR, 0) : at + _NEAR + 1], key=lambda n: abs(n - step.number))
    return any(_gave_up_some(source, number, step.new) for number in near)


def _gave_up_some(source: Source, number: int, least: int) -> bool:
    """Whether a step of so many tokens at least kept its first, and not its last."""
    try:
        step = source.step(number)
    except KvtraceError:
        return False
    if step.new < least or not _goes_on(step):
        return False
    return any(_stay(source, step, sequence) for sequence in range(step.num_sequences))


def _goes_on(step: Step) -> bool:
    """Whether it takes in several tokens after others."""
    places = (row[0] for row in step.positions if row)
    return step.new > 1 and step.parent is not None and max(places, default=0) > 0


def _stay(source: Source, step: Step, sequence: int) -> int | None:
    """How many tokens of a step stay where the next one writes over others; None: it does not."""
    numbers = source.step_numbers()
    after = bisect_right(numbers, step.number)
    if after == len(numbers) or sequence >= len(step.positions):
        return None
    try:
        then = source.step(numbers[after])
    except KvtraceError:
        return None
    if then.parent != step.number or not any(event.kind == "crop" for event in then.events):
        return None
    here, there = step.positions[sequence], then.positions[sequence : sequence + 1]
    if not (here and there and there[0]) or there[0][0] > here[-1]:
        return None
    return sum(place < there[0][0] for place in here)
