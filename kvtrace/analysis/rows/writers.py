"""Which step wrote the rows that a sequence goes on with, told by the cells they are."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtrace.trace import CacheStep, Step, TopLogits

Origin = tuple[int, int]
"""A step, and a sequence in it."""


class _Written(NamedTuple):
    """Cells of a cache layer that a step wrote: the first, how many a sequence, and the step."""

    first_cell: int
    rows: int
    step: int


@dataclass(slots=True)
class Writers:
    """Remembers who wrote which cells."""

    _written: dict[int, list[_Written]] = field(default_factory=dict)
    _tops: dict[int, tuple[TopLogits, ...]] = field(default_factory=dict)
    _moves: bool = False

    def add(self, step: Step) -> None:
        """Remember what a step wrote."""
        if step.num_sequences > 1:
            self._tops[step.number] = step.top
        for group in step.caches:
            if group.rows:
                wrote = _Written(group.first_cell, group.rows, step.number)
                for layer in group.layers:  # the next step may have them in other groups
                    self._written.setdefault(layer, []).append(wrote)

    def joined(self, step: Step) -> Sequence[Origin | None] | None:
        """Whom each sequence goes on with, where a batch was joined of several; else None."""
        group = next((one for one in step.caches if one.rows and one.attended), None)
        if group is None or len(group.attended) != step.num_sequences:
            return None
        found = [self._origin(group, sequence) for sequence in range(step.num_sequences)]
        return found if len({one[0] for one in found if one is not None}) > 1 else None

    def moved(self, step: Step) -> Sequence[Origin] | None:
        """Whom each sequence goes on with, where code of one's own reordered the batch; else None.

        Most layers say so, and the tokens that were fed are among the likeliest there. Where rows
        were only mixed up, they are likelier in the sequences that stood there before, and were so
        in all steps.
        """
        votes: Counter[tuple[Origin, ...]] = Counter()
        layers = 0
        for group in step.caches:
            if group.rows and len(group.attended) == step.num_sequences:
                layers += len(group.layers)
                found = [self._origin(group, one) for one in range(step.num_sequences)]
                whole = tuple(one for one in found if one is not None and one[0] == step.parent)
                votes[whole] += len(group.layers) * (len(whole) == len(found))
        sources, count = votes.most_common(1)[0] if votes else ((), 0)
        order, tops = [one[1] for one in sources], self._tops.get(step.parent or 0, ())
        if 2 * count <= layers or order == sorted(set(order)) or max(order) >= len(tops):
            return None
        fed = [tokens[0] if tokens else -1 for tokens in step.tokens]
        if not all(token in tops[one].ids for token, one in zip(fed, order, strict=True)):
            return None
        there = sum(_rank(token, tops[one]) for token, one in zip(fed, order, strict=True))
        before = sum(_rank(token, top) for token, top in zip(fed, tops, strict=False))
        self._moves = self._moves or there < before
        return sources if self._moves or there == before else None

    def _origin(self, group: CacheStep, sequence: int) -> Origin | None:
        """Who wrote the last row that a sequence had before the step."""
        old = [run for run in group.attended[sequence] if run.cell < group.first_cell]
        written = self._written.get(group.layers[0], [])
        if not old or not written:
            return None
        cell = min(old[-1].cell + old[-1].count, group.first_cell) - 1
        before = bisect_right(written, cell, key=lambda one: one.first_cell)
        if not before:
            return None
        one = written[before - 1]
        return one.step, (cell - one.first_cell) // one.rows


def _rank(token: int, top: TopLogits) -> int:
    """How many tokens were likelier, as far as that is known."""
    return top.ids.index(token) if token in top.ids else len(top.ids)
