"""Beams whose tokens were taken over from one another, while their rows stayed where they were.

A search goes on with the best of all candidates: with the likeliest tokens of each sequence, more
of one and fewer or none of another. Where all tokens that are fed are such, and some of them not
among the likeliest of the sequence that gets them, time and again, tokens were reordered and rows
were not: each text as it is held is right, and is not the one that the search is about. What
samples, or is given its tokens, is soon fed something else, and is not judged.

A batch that took the likeliest token of each sequence all along, and loses some of them, shows it
at once: the tokens that go on are those of other sequences than the rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from msgspec.structs import replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace

_STEPS = 2
"""Steps in which a token is not of its own sequence: one may be chance."""

_MOST = 8
"""More beams than these are not looked at: there are too many ways in which they may go on."""

_SLACK = 2
"""A search takes somewhat more candidates than it goes on with: some may end the text."""


@dataclass(slots=True)
class NotReordered:
    """Looks for sequences that are fed the likeliest tokens of others.

    Attributes:
        trace: Whose steps.
        moved: A sequence holds rows of another one: as its text, they are its own nowhere.
    """

    trace: Trace
    moved: bool = False
    _first: Finding | None = None
    _steps: int = 0
    _over: bool = False
    _greedy: int = 0
    _strayed: bool = False

    def add(self, step: Step, before: Step | None) -> Finding | None:
        """What the next step shows.

        Args:
            step: Any.
            before: The one recorded before it; None: there is none.
        """
        if self._over or before is None or not _one_token_each(step, before):
            return None
        own = _continued(step, before)
        likeliest = [one.ids for one in before.top]
        if own is None or len(likeliest) != before.num_sequences or not all(likeliest):
            return None
        others = self._of_those_that_left(step, own, likeliest)
        if others:
            self._over = True
            return self._finding(step, others, own)
        astray = _astray([row[0] for row in step.tokens], own, likeliest)
        self._over = astray is None
        if astray:
            self._steps += 1
            self._first = self._first or self._finding(step, astray, own)
        if not astray or self._first is None or self._steps < _STEPS:
            return None
        self._over = True
        more = f"; so it is in step {step.number}"
        return replace(self._first, evidence=f"{self._first.evidence}{more}")

    def _of_those_that_left(
        self, step: Step, own: list[int], likeliest: list[tuple[int, ...]]
    ) -> dict[int, int]:
        """Sequences that go on with the likeliest token of another one's text, and of which.

        Args:
            step: It.
            own: Which sequence of the step before each one goes on with.
            likeliest: Tokens after each of those.
        """
        tokens, best = [row[0] for row in step.tokens], [most[0] for most in likeliest]
        astray = {n: token for n, token in enumerate(tokens) if token != best[own[n]]}
        if not astray:
            self._greedy += 1
            return {}
        sure = self._greedy >= _STEPS and not self._strayed
        self._strayed = True
        # those whose rows are gone first: theirs are the likelier ones to be taken for others
        every = sorted(range(len(best)), key=lambda n: n in own)
        found = {
            sequence: next((n for n in every if best[n] == token), -1)
            for sequence, token in astray.items()
        }
        most = len(tokens) + _SLACK
        far = any(token not in likeliest[own[n]][:most] for n, token in astray.items())
        return found if sure and far and -1 not in found.values() else {}

    def _finding(self, step: Step, astray: dict[int, int], own: list[int]) -> Finding:
        layer = step.caches[0].layers[0]
        site = next((one.index for one in self.trace.meta.sites if one.reads == layer), 0)
        sequence, other = next(iter(astray.items()))
        holder = own[sequence]
        self.moved = holder != sequence
        whose, what = "its own", "tokens were reordered, rows were not"
        if self.moved:
            whose, what = f"sequence {holder}'s", "rows were not reordered as tokens were"
        evidence = (
            f"sequence {sequence} was fed token {step.tokens[sequence][0]}, one of the likeliest "
            f"after sequence {other} and not after {whose}, but holds {whose} rows: {what}"
        )
        return Finding(
            "WRONG-BATCH-ROW", step.number, site, "k", evidence, row=0, sequences=tuple(astray)
        )


def _one_token_each(step: Step, before: Step) -> bool:
    """Whether several sequences, of a size to be searched, go on by a token each."""
    goes_on = step.parent is not None and step.packed is None and bool(step.caches)
    return goes_on and step.new == 1 and 1 < before.num_sequences <= _MOST


def _continued(step: Step, before: Step) -> list[int] | None:
    """Which sequence of the step before each one goes on with, told by its newest row."""
    layer = step.caches[0].layers[0]
    here, wrote = step.cache_step(layer), before.cache_step(layer)
    if here is None or wrote is None or len(here.attended) != step.num_sequences:
        return None
    rows = max(wrote.rows, 1)
    newest = [wrote.first_cell + (n + 1) * rows - 1 for n in range(before.num_sequences)]
    found = []
    for runs in here.attended:
        held = [
            n
            for n, cell in enumerate(newest)
            if any(run.cell <= cell < run.cell + run.count for run in runs)
        ]
        if len(held) != 1:
            return None
        found.append(held[0])
    return found


def _astray(
    tokens: list[int], own: list[int], likeliest: list[tuple[int, ...]]
) -> dict[int, int] | None:
    """Sequences whose token is of another one, and of which; None: nobody searched like this."""
    taken = _taken(Counter(tokens), likeliest)
    if taken is None:
        return None
    astray = {}
    for sequence, (token, mine) in enumerate(zip(tokens, own, strict=True)):
        if token not in likeliest[mine][: len(tokens) + _SLACK]:
            astray[sequence] = next(n for n, most in enumerate(taken) if token in most)
    return astray


def _taken(tokens: Counter[int], likeliest: list[tuple[int, ...]]) -> list[tuple[int, ...]] | None:
    """How many of the likeliest tokens of each sequence make up all that were fed.

    A search takes the best of all: of each sequence its likeliest, and none without those before.
    """
    if not likeliest:
        return None if tokens.total() else []
    most = likeliest[0]
    for count in range(min(len(most), tokens.total()), -1, -1):
        here = Counter(most[:count])
        if here <= tokens:
            rest = _taken(tokens - here, likeliest[1:])
            if rest is not None:
                return [most[:count], *rest]
    return None
