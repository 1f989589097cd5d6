"""Which rows of two runs belong to the same token: by what was fed, whatever steps fed it.

Prefill may be whole in one run and in chunks in the other; left padding does not count; beams
that change places and rows that were cropped are followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.trace import Step, Trace


class Fed(Struct, frozen=True):
    """Where a token was fed.

    Attributes:
        token: Its id.
        step: Number of the step.
        sequence, row: Row of the batch, and row among the step's new ones.
    """

    token: int
    step: int
    sequence: int
    row: int


Path = dict[int, Fed]
"""Place to the token that stands there at the end of the run."""


class Stretch(Struct, frozen=True):
    """Consecutive rows of one step in each run that hold the same tokens.

    Attributes:
        position: Of the first row.
        old, new: Where its token was fed in each run.
        count: Rows.
    """

    position: int
    old: Fed
    new: Fed
    count: int


class Pair(Struct, frozen=True):
    """A sequence of each run, taken for the same one.

    Attributes:
        sequence, other: Row of the batch at the end of the old run, and of the new one.
        old, new: What they were fed.
        shared: Places of the same tokens, up to the first that differs, ascending.
    """

    sequence: int
    other: int
    old: Path
    new: Path
    shared: list[int]

    @property
    def whole(self) -> bool:
        """Whether they part nowhere, as far as both go."""
        return len(self.shared) == min(len(self.old), len(self.new))


def paired(old: Sequence[Path], new: Sequence[Path]) -> list[Pair]:
    """Each sequence of the old run with the one of the new run that shares most of its text.

    With that of the same row of the batch, where no other shares more.
    """

    def pair(mine: int, theirs: int) -> Pair:
        both = old[mine], new[theirs]
        return Pair(mine, theirs, *both, common(*both))

    straight = (pair(row, row) for row in range(min(len(old), len(new))))
    found = {one.sequence: one for one in straight if one.whole}
    taken = set(found)
    rest = [
        pair(mine, theirs)
        for mine in range(len(old))
        for theirs in range(len(new))
        if mine not in found and theirs not in taken
    ]
    for one in sorted(rest, key=lambda one: (-len(one.shared), one.sequence != one.other)):
        if one.sequence not in found and one.other not in taken:
            found[one.sequence] = one
            taken.add(one.other)
    return [found[sequence] for sequence in sorted(found)]


def readable(trace: Trace) -> Iterator[Step]:
    """The steps of a trace that are not damaged."""
    for number in trace.numbers:
        try:
            yield trace.step(number)
        except TraceError:
            continue


def unreadable(trace: Trace) -> Iterator[str]:
    """What is wrong with the others, and those that are not there."""
    yield from (f"{trace.name}: {text}" for text in trace.missing)
    yield from (f"{trace.name}: {one.text}" for one in trace.not_recovered if one.step is not None)
    for number in trace.numbers:
        try:
            trace.step(number)
        except TraceError as error:
            yield str(error)


def paths(trace: Trace, *, told: bool) -> list[Path]:
    """The final path of each sequence.

    Args:
        trace: Whose.
        told: Places are the positions that the steps were told, and one that is told again takes
            the place of what stood there; else tokens are counted as they were fed.
    """
    out: list[Path] = []
    for step in readable(trace):
        before = [dict(path) for path in out] if step.parent is not None else []
        out = [_source(step, before, sequence) for sequence in range(step.num_sequences)]
        for sequence, (tokens, positions) in enumerate(
            zip(step.tokens, step.positions, strict=True)
        ):
            path = out[sequence]
            if not told:
                _count_on(path, step.number, sequence, tokens, positions)
                continue
            live = [place for place in positions if place >= 0]
            if live and live[0] in path:
                path = out[sequence] = {at: fed for at, fed in path.items() if at < live[0]}
            for row, (token, place) in enumerate(zip(tokens, positions, strict=True)):
                if place >= 0:
                    path[place] = Fed(token, step.number, sequence, row)
    return out


def _count_on(
    path: Path, step: int, sequence: int, tokens: Sequence[int], positions: Sequence[int]
) -> None:
    """Add a step's tokens to a path, each behind the one before."""
    for row, (token, place) in enumerate(zip(tokens, positions, strict=True)):
        if place >= 0:
            path[len(path)] = Fed(token, step, sequence, row)


def places_of(trace: Trace, number: int, layer: int, path: Path) -> dict[int, int]:
    """Cells that a layer was given up to a step, and the place of each in a path."""
    known = {(fed.step, fed.sequence, fed.row): place for place, fed in path.items()}
    out: dict[int, int] = {}
    for step in {fed.step for fed in path.values() if fed.step <= number}:
        group = trace.cache_step(step, layer)
        for sequence in range(trace.step(step).num_sequences):
            for row in range(group.rows):
                place = known.get((step, sequence, row))
                if place is not None:
                    out[group.first_cell + sequence * group.rows + row] = place
    return out


def _source(step: Step, before: Sequence[Path], sequence: int) -> Path:
    """The path a sequence goes on from."""
    if not before:
        return {}
    at = step.order[sequence] if sequence < len(step.order) else sequence
    if len(before) < step.num_sequences and step.num_sequences % len(before) == 0:
        at = sequence // (step.num_sequences // len(before))
    return dict(before[at]) if at < len(before) else {}


def common(old: Path, new: Path) -> list[int]:
    """Positions up to the first where the runs were fed different tokens, ascending."""
    out: list[int] = []
    for place in sorted(set(old) | set(new)):
        if place not in old or place not in new or old[place].token != new[place].token:
            break
        out.append(place)
    return out


def stretches(old: Path, new: Path, positions: Sequence[int]) -> Iterator[Stretch]:
    """Positions as stretches of rows, in order."""
    start = 0
    for at in range(1, len(positions) + 1):
        if at < len(positions) and _follows(old, positions, at) and _follows(new, positions, at):
            continue
        first = positions[start]
        yield Stretch(first, old[first], new[first], at - start)
        start = at


def _follows(path: Path, positions: Sequence[int], at: int) -> bool:
    here, before = path[positions[at]], path[positions[at - 1]]
    return here.step == before.step and here.row == before.row + 1
