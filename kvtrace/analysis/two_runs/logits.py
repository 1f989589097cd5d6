"""Where the logits of two runs part although all attention is equal: something behind it changed.

Knows the highest logits of a step, as far as they were recorded, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtrace.analysis.two_runs.align import Path
from kvtrace.trace import TopLogits, Trace

_TIMES = 50.0
"""Times what is rounding in attention: logits gather the rounding of a whole row of numbers."""

_LEAST = 0.01
"""Less changes no probability by more than a hundredth of itself."""

_WIDE = frozenset({"float32", "float64"})


@dataclass(frozen=True, slots=True)
class LogitsPart:
    """The first logits that differ by more than rounding.

    Attributes:
        old_step, new_step: Steps that gave them.
        position: Of the token whose logits they are.
        sequence: Row of the batch.
        apart: Largest difference of a logit that is among the highest of both.
        size: Largest of the old run's.
        limit: What would be rounding.
    """

    old_step: int
    new_step: int
    position: int
    sequence: int
    apart: float
    size: float
    limit: float


def logits_part(
    old: Trace,
    new: Trace,
    pair: tuple[Path, Path],
    positions: Sequence[int],
    rounding: float,
    *,
    same: bool,
) -> LogitsPart | None:
    """The first place at which they part; None where they never do, or nothing tells.

    In narrow types an expert that is chosen otherwise in the last layer moves logits as far, unless
    all attention is the same to the last bit: then nothing behind it has a reason to differ.

    Args:
        old: A run.
        new: The other one.
        pair: Path of a sequence in each.
        positions: That both were fed, ascending.
        rounding: Largest relative difference of attention that is rounding.
        same: All attention is the same to the last bit.
    """
    if not (same or {old.meta.model.dtype, new.meta.model.dtype} <= _WIDE):
        return None
    times = 1.0 if same else _TIMES
    for position in positions:
        tops = [_top(trace, path, position) for trace, path in zip((old, new), pair, strict=True)]
        if tops[0] is None or tops[1] is None:
            continue
        apart = _apart(tops[0], tops[1])
        # the sum of all of them is of numbers that were rounded already
        size = max(map(abs, tops[0].logits)) if same else _size(tops[0])
        limit = max(times * rounding * size, _LEAST)
        if apart > limit:
            mine, theirs = (path[position] for path in pair)
            steps = mine.step, theirs.step
            return LogitsPart(*steps, position, mine.sequence, apart, size, limit)
    return None


def _top(trace: Trace, path: Path, position: int) -> TopLogits | None:
    """The highest logits after a token; None where its step went on, or kept none."""
    fed = path[position]
    step = trace.step(fed.step)
    if fed.row != step.new - 1 or fed.sequence >= len(step.top):
        return None
    found = step.top[fed.sequence]
    return found if found.ids else None


def _size(top: TopLogits) -> float:
    return max(map(abs, (*top.logits, top.logsumexp)))


def _apart(mine: TopLogits, theirs: TopLogits) -> float:
    """Largest difference of what both know; without end where they know different tokens."""
    other = dict(zip(theirs.ids, theirs.logits, strict=True))
    both = [
        abs(one - other[token])
        for token, one in zip(mine.ids, mine.logits, strict=True)
        if token in other
    ]
    return max((*both, abs(mine.logsumexp - theirs.logsumexp))) if both else float("inf")
