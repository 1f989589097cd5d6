"""Where the logits of two runs part although all attention is equal: something behind it changed.

Knows the highest logits of a step, as far as they were recorded, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, sqrt

from msgspec import Struct

from kvtrace.analysis.checks.noise import FLOOR
from kvtrace.analysis.two_runs.align import Path, readable
from kvtrace.trace import TopLogits, Trace, rounded_by

_TIMES = 50.0
"""Times what is rounding in attention: logits gather the rounding of a whole row of numbers."""

_LEAST = 0.01
"""Less changes no probability by more than a hundredth of itself."""

_WIDE = frozenset({"float32", "float64"})

_MANY = 3
"""Places that most of can be spoken of; fewer must all be off by twice as much."""

_LAYERS = 4
"""Of the models that the floors of narrow types were measured on."""


class LogitsPart(Struct, frozen=True):
    """The first logits that differ by more than rounding.

    Attributes:
        old_step, new_step: Steps that gave them.
        position: Of the token whose logits they are.
        sequence: Row of the batch.
        apart: Largest difference of a logit that is among the highest of both.
        size: Largest of the old run's.
        limit: What would be rounding.
        others: Those are the same to the last bit, and only the sum of all is off by `apart`.
    """

    old_step: int
    new_step: int
    position: int
    sequence: int
    apart: float
    size: float
    limit: float
    others: bool = False


def logits_part(
    old: Trace,
    new: Trace,
    pair: tuple[Path, Path],
    positions: Sequence[int],
    rounding: Rounding,
) -> LogitsPart | None:
    """The first place at which they part; None where they never do, or nothing tells.

    In narrow types an expert that is chosen otherwise in the last layer moves the logits of a place
    as far as another norm does. Unless all attention is the same to the last bit, when nothing
    behind it has a reason to differ, most places must part there.

    Args:
        old: A run.
        new: The other one.
        pair: Path of a sequence in each.
        positions: That both were fed, ascending.
        rounding: What the attention of both says of it.
    """
    places = list(_places(old, new, pair, positions))
    narrow = _narrowest(old, new)
    if rounding.same:
        # the sum of all of them is of numbers that were rounded already
        far = [(one, one.highest, rounding.limit) for one in places]
    elif narrow is None:
        far = [(one, one.size, _TIMES * rounding.limit) for one in places]
    else:
        limit = _of_narrow(old, new, narrow, rounding.seen)
        apart = sorted(one.apart / one.highest for one in places if one.highest)
        if limit is None or not apart or apart[(len(apart) - 1) // 2] <= limit:
            return None
        if len(apart) < _MANY and apart[0] <= 2 * limit:
            return None
        far = [(one, one.highest, limit) for one in places]
    for one, size, relative in far:
        limit = max(relative * size, _LEAST)
        if one.apart > limit:
            mine, theirs = (path[one.position] for path in pair)
            steps = mine.step, theirs.step
            return LogitsPart(*steps, one.position, mine.sequence, one.apart, size, limit)
    return _others_part(places, pair, rounding) if rounding.same else None


def _others_part(
    places: Sequence[_Place], pair: tuple[Path, Path], rounding: Rounding
) -> LogitsPart | None:
    """The first place whose highest logits are the same to the last bit, and the sum of all is not.

    Nothing was rounded otherwise, then: another token's logit differs.
    """
    for one in places:
        limit = rounding.limit * one.size
        if one.alike and one.apart > limit:
            mine, theirs = (path[one.position] for path in pair)
            steps = mine.step, theirs.step
            return LogitsPart(
                *steps, one.position, mine.sequence, one.apart, one.size, limit, others=True
            )
    return None


def kept(old: Trace, new: Trace) -> int:
    """Of how many tokens both runs keep the logits after a step; 0: one of them keeps none."""
    return min(
        max((len(top.ids) for step in readable(trace) for top in step.top), default=0)
        for trace in (old, new)
    )


class Rounding(Struct, frozen=True):
    """What the attention of two runs says of how they round.

    Attributes:
        same: All attention is the same to the last bit.
        limit: Relative difference of attention that is rounding.
        seen: The largest that was seen.
    """

    same: bool
    limit: float
    seen: float


class _Place(Struct, frozen=True):
    """Logits that both runs kept of a place: how far apart, and the largest number of the old run.

    `size` knows of the sum of all, `highest` does not; `alike`: only that sum differs, if any does.
    """

    position: int
    apart: float
    size: float
    highest: float
    alike: bool


def _places(
    old: Trace, new: Trace, pair: tuple[Path, Path], positions: Sequence[int]
) -> Iterator[_Place]:
    for position in positions:
        mine, theirs = (
            _top(trace, path, position) for trace, path in zip((old, new), pair, strict=True)
        )
        if mine is not None and theirs is not None:
            highest = max(map(abs, mine.logits))
            size = max(highest, abs(mine.logsumexp))
            alike = (mine.ids, mine.logits) == (theirs.ids, theirs.logits)
            yield _Place(position, _apart(mine, theirs), size, highest, alike)


def _narrowest(old: Trace, new: Trace) -> str | None:
    """The least exact narrow type of both; None where both are wide."""
    types = {trace.meta.model.dtype for trace in (old, new)} - _WIDE
    return max(types, key=lambda one: FLOOR.get(one, inf), default=None)


def _of_narrow(old: Trace, new: Trace, narrow: str, seen: float) -> float | None:
    """How far apart, relatively, is rounding of logits; None where that is not known.

    One norm and one product round once more: measured, by less than a third of what the attention
    of all layers gathers, and by three quarters of the floor.
    """
    inside = any(rounded_by(note) is not None for one in (old, new) for note in one.notes)
    if inside or narrow not in FLOOR:
        return None
    layers = max((site.layer + 1 for site in old.meta.sites), default=1)
    return max(FLOOR[narrow] * sqrt(max(1.0, layers / _LAYERS)), seen / 3)


def _top(trace: Trace, path: Path, position: int) -> TopLogits | None:
    """The highest logits after a token; None where its step went on, or kept none."""
    fed = path[position]
    step = trace.step(fed.step)
    if fed.row != step.new - 1 or fed.sequence >= len(step.top):
        return None
    found = step.top[fed.sequence]
    return found if found.ids else None


def _apart(mine: TopLogits, theirs: TopLogits) -> float:
    """Largest difference of what both know; without end where they know different tokens."""
    other = dict(zip(theirs.ids, theirs.logits, strict=True))
    both = [
        abs(one - other[token])
        for token, one in zip(mine.ids, mine.logits, strict=True)
        if token in other
    ]
    return max((*both, abs(mine.logsumexp - theirs.logsumexp))) if both else float("inf")
