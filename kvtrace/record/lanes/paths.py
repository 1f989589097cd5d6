"""The token paths of a run: what each step's sequences had been fed, branches included.

A decode without branches is one path per sequence. Beams that were dropped, drafts that were
rejected and second turns part from a path; each ends in a path of its own, so that every step can
be recomputed along the tokens it really saw. Works on steps alone.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.analysis.rows.writers import Origin, Writers
from kvtrace.trace import CacheStep, Run, Step


class Node(Struct, frozen=True):
    """The tokens that one step fed to one sequence, as a stretch of a path.

    Attributes:
        step: Number of the step.
        sequence: Row of its batch.
        start, end: Rows of the path, half-open.
    """

    step: int
    sequence: int
    start: int
    end: int


@dataclass(eq=False, slots=True)
class Path:
    """A token sequence as it was at its longest.

    Attributes:
        tokens: All of them, padding included.
        padding: Hidden tokens at the left.
        nodes: Stretches that are compared along this path, in order of time.
        root: Step that its text began with.
        row: Sequence it was in that step.
        shared: Stretches before those, which are compared along the path it parted from.
        until: The first step whose rows are not compared; None: all are.
        first: Position of its first token that is no padding: some models count from 1.
        slid: Whether it is the text of the step before without its oldest tokens, whose positions
            it goes on with: a window that moves over a text, with no cache.
    """

    tokens: list[int] = field(default_factory=list)
    padding: int = 0
    nodes: list[Node] = field(default_factory=list)
    root: int = -1
    row: int = 0
    shared: list[Node] = field(default_factory=list)
    until: int | None = None
    first: int = 0
    slid: bool = False

    def compares(self, step: int) -> bool:
        """Whether rows of a step are compared along it."""
        return self.until is None or step < self.until


End = tuple[Path, int]
"""A path, and how much of it had been fed after a step."""

Kept = dict[int, tuple[tuple[Run, ...], ...]]
"""Cache layer to the rows it held after a step, per sequence."""


@dataclass(slots=True)
class Paths:
    """Grows with the steps.

    Attributes:
        paths: All of them, in the order they began.
        unknown: Steps whose earlier tokens are not known, or that were fed embeddings.
        fed: Steps that were fed embeddings which are known. Each has a negative number of its own
            in the place of its tokens.
        apart: Steps that lie on no path.
    """

    paths: list[Path] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    fed: Container[int] = ()
    apart: Container[int] = ()
    _ends: dict[int, list[End | None]] = field(default_factory=dict)
    _newest: list[End | None] = field(default_factory=list)
    _kept: dict[int, Kept] = field(default_factory=dict)
    _writers: Writers = field(default_factory=Writers)

    def add(self, step: Step) -> None:
        """Follow a step."""
        parents = self._ends.get(-1 if step.parent is None else step.parent, [])
        kept = {} if step.parent is None else self._kept.get(step.parent, {})
        order = step.order
        removed = _removed(step, kept, order[0] if order else 0)
        before = [self._end(source) for source in self._sources(step, len(parents))]
        past = _rows_before(step, [0 if one is None else one[0].first for one in before])
        ends = [
            self._follow(step, sequence, tokens, before[sequence], (past, removed))
            if tokens
            else None
            for sequence, tokens in enumerate(self._tokens(step))
        ]
        if None in ends:
            self.unknown.append(step.number)
        self._ends[step.number] = self._newest = ends
        self._writers.add(step)
        self._kept[step.number] = {group.layers[0]: group.kept for group in step.caches}

    def _follow(
        self,
        step: Step,
        sequence: int,
        tokens: Sequence[int],
        before: End | None,
        rows: tuple[int, list[int]],
    ) -> End | None:
        """Lay what a sequence was fed on a path; None: there is none for it.

        Args:
            step: In which.
            sequence: Row of its batch.
            tokens: What it was fed.
            before: Where the text ended that it goes on with.
            rows: Those there were, and those that each cache had taken off.
        """
        past, removed = rows
        start = 0 if before is None else _begin(step, sequence, before, removed)
        path, start = self._place(step, before, past, (tokens, start))
        if path is None:
            return None
        if path.root < 0:
            path.root, path.row = step.number, sequence
            path.first = next((place for place in step.positions[sequence] if place >= 0), 0)
            path.slid = self._slid(path, sequence)
        if start in (0, path.padding):  # a first chunk may be padding alone
            path.padding = start + sum(place < 0 for place in step.positions[sequence])
        path.nodes.append(Node(step.number, sequence, start, start + len(tokens)))
        return path, start + len(tokens)

    def _slid(self, path: Path, sequence: int) -> bool:
        """Whether a text that begins is a window which moved on since the step before."""
        last = self._newest[sequence] if sequence < len(self._newest) else None
        if last is None:
            return False
        before, dropped = last[0].tokens[: last[1]], path.first - last[0].first
        stayed = len(before) - dropped
        kept = before[dropped:] == path.tokens[: max(0, stayed)]
        return 0 < dropped < len(before) and kept and 2 * stayed >= len(path.tokens) > stayed

    def _sources(self, step: Step, parents: int) -> Sequence[Origin | None]:
        """The step and sequence that each sequence goes on with, as far as there is one.

        Args:
            step: Which goes on.
            parents: Sequences of its parent.
        """
        if step.parent is None:
            return [None] * step.num_sequences
        if step.order:
            return [(step.parent, source) for source in step.order]
        grew = 0 < parents < step.num_sequences
        times = _repeats(step, parents)
        joined = self._writers.joined(step) if grew else None
        if 1 < step.num_sequences == parents and step.packed is None:
            joined = self._writers.moved(step)
        return joined or [(step.parent, one // times) for one in range(step.num_sequences)]

    def _end(self, source: Origin | None) -> End | None:
        """Where the text of a sequence ended."""
        ends = [] if source is None else self._ends.get(source[0], [])
        return ends[source[1]] if source is not None and source[1] < len(ends) else None

    def _tokens(self, step: Step) -> list[Sequence[int]]:
        """What each sequence was fed; nothing where that is not known, or no sequence."""
        if step.number in self.apart:
            return [()] * step.num_sequences
        if step.number in self.fed:
            return [[-2 - step.number] * len(tokens) for tokens in step.tokens]
        return [tokens if min(tokens, default=-1) >= 0 else () for tokens in step.tokens]

    def _place(
        self,
        step: Step,
        before: End | None,
        past: int,
        fed: tuple[Sequence[int], int],
    ) -> tuple[Path | None, int]:
        """The path that holds the tokens that were fed now, and where they begin."""
        tokens, start = fed
        if past == 0 or step.parent is None:
            if past:
                return None, 0
            if before is not None and _begins(tokens, before[0].tokens):
                before[0].tokens.extend(tokens[len(before[0].tokens) :])
                return before[0], 0
            return self._new(list(tokens)), 0
        if before is None:
            return None, 0
        if start < 0:
            return None, 0
        path, _ = before
        if len(path.tokens) != start:
            trunk = path
            path = self._new(trunk.tokens[:start], trunk.padding)
            path.root, path.row, path.first = trunk.root, trunk.row, trunk.first
            known = (*trunk.shared, *trunk.nodes)
            path.shared = [replace(n, end=min(n.end, start)) for n in known if n.start < start]
        path.tokens.extend(tokens)
        return path, start

    def _new(self, tokens: list[int], padding: int = 0) -> Path:
        path = Path(tokens, padding)
        self.paths.append(path)
        return path

    def forget(self, before: int) -> None:
        """Drop what is known of the ends of earlier steps, which then are no parents any more."""
        for number in [one for one in self._ends if one < before]:
            del self._ends[number]
            self._kept.pop(number, None)


def _rows_before(step: Step, firsts: Sequence[int]) -> int:
    """Rows that were there of the text that a step goes on with.

    Args:
        step: It.
        firsts: Of each sequence, the position that its text began with.
    """
    lengths = [group.length_before for group in _growing(step)]
    past = max(lengths, default=0)
    if step.parent is None and 0 in lengths and all(row[0] <= 0 for row in step.positions):
        return 0  # a text begins: what some layers hold is not of it
    if past == 0 and step.parent is not None:
        # a faulty cache may hold none of its old rows; its tokens still have a place
        places = zip(step.positions, firsts, strict=True)
        return max((row[0] - first for row, first in places if row), default=0)
    return past


def _begin(step: Step, sequence: int, before: End, removed: Sequence[int]) -> int:
    """Where on its path the tokens of a sequence begin that goes on."""
    path, end = before
    told = step.positions[sequence][0] - path.first + path.padding
    taken = end - told
    if taken > 0 and _wrote_none_of(step, sequence, path.tokens[told:end]):
        return end
    if taken in (0, *removed) or _apart(step, taken, removed):
        return told  # its place says what was taken off: the rest was lost, or forgotten
    return end - min(removed)


def _wrote_none_of(step: Step, sequence: int, there: Sequence[int]) -> bool:
    """Whether nothing was written, and other tokens were fed than those rows are of that are there.

    What is fed once more leaves its rows as they were; any other token has lost its own.
    """
    fed = step.tokens[sequence]
    other = min((*fed, *there), default=-1) >= 0 and list(fed) != list(there[: len(fed)])
    return other and not any(group.rows for group in step.caches)


def _growing(step: Step) -> Sequence[CacheStep]:
    """The caches that a step wrote to: what an encoder said stays, and a new text may follow."""
    return [group for group in step.caches if group.rows] or step.caches


def _begins(tokens: Sequence[int], known: Sequence[int]) -> bool:
    return len(tokens) >= len(known) and list(tokens[: len(known)]) == list(known)


def _repeats(step: Step, parents: int) -> int:
    """How often each of the parent's sequences was repeated, one after the other."""
    return max(1, step.num_sequences // parents) if parents else 1


def _removed(step: Step, kept: Kept, source: int) -> list[int]:
    """Rows that were cropped off before the step, as each of its caches says.

    A window that is cropped also drops rows at its start: only those at the end count.

    Args:
        step: It.
        kept: What its parent kept.
        source: The parent's sequence that the first one goes on with.
    """
    new = max(map(len, step.tokens), default=0)
    found = [
        # tokens that made the rows they had made before wrote none: theirs are the last old ones
        count + max(0, new - group.rows) * (count > 0)
        for group in _growing(step)
        if group.layers[0] in kept and not group.rewritten
        if (count := _off_the_end(kept[group.layers[0]][source : source + 1], group)) is not None
    ]
    if found:
        return found
    crops = (event for event in step.events if event.kind == "crop")
    lengths = (zip(one.lengths_before, one.lengths_after, strict=True) for one in crops)
    return [sum(max((before - after for before, after in one), default=0) for one in lengths)]


def _apart(step: Step, taken: int, removed: Sequence[int]) -> bool:
    """Whether fewer rows were taken off a sequence than off others of its batch."""
    places = {row[0] for row in step.positions if row}
    return len(places) > 1 and 0 < taken <= max(removed)


def _off_the_end(kept: tuple[tuple[Run, ...], ...], group: CacheStep) -> int | None:
    """Rows that were kept after the last one that the first sequence still has."""
    if not kept or not group.attended:
        return None
    old = [run for run in group.attended[0] if run.cell < group.first_cell]
    found = [_rows_after(kept[0], min(run.cell + run.count, group.first_cell) - 1) for run in old]
    # a ring has its newest row anywhere: the one that was kept last counts
    return min((count for count in found if count is not None), default=None)


def _rows_after(kept: tuple[Run, ...], cell: int) -> int | None:
    """Rows that were kept behind a cell; None if it was not."""
    after = 0
    for run in reversed(kept):
        if run.cell <= cell < run.cell + run.count:
            return after + run.cell + run.count - 1 - cell
        after += run.count
    return None
