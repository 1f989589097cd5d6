"""How steps hang together: which one each goes on with, in which phase, by which token."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace.record.cache.step import LedgerStep
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.tokens.positions import Positions
from kvtrace.record.steps.backlog import Waiting
from kvtrace.record.steps.phases import Phases
from kvtrace.trace import CacheLayer

Tokens = tuple[tuple[int, ...], ...]

_CACHES = 1024
"""Caches whose latest step is remembered."""


class Lineage:
    """Remembers the latest step of each cache, and the tokens of the one before."""

    def __init__(self, phases: Phases) -> None:
        """Nothing ran.

        Args:
            phases: Tells the phases apart.
        """
        self._phases = phases
        self._latest: dict[int, int] = {}
        self._before: Tokens = ()

    def enter(self, number: int, entry: LedgerStep, tokens: Tokens) -> None:
        """A step is there; others may go on with it."""
        self._before = tokens
        for cache in entry.caches:
            self._latest.pop(cache, None)
            self._latest[cache] = number
        while len(self._latest) > _CACHES:
            del self._latest[next(iter(self._latest))]

    def parent(
        self,
        number: int,
        entry: LedgerStep,
        tokens: Tokens,
        where: Positions,
        layers: Sequence[CacheLayer],
    ) -> int | None:
        """The step whose cache this one continued; without a cache, whose tokens."""
        if not entry.caches:
            if entry.parent is not None:
                return entry.parent
            return number - 1 if _extends(tokens, self._before) else None
        # rows made anew may equal those of another cache with the same text
        continued = any(
            group.length_before for group in entry.groups if layers[group.layers[0]].held
        )
        # of rows that a faulty cache changed none is known again, but its tokens have a place
        continued = continued or any(row[0] > 0 for row in where if row)
        found = [self._latest[one] for one in entry.caches if one in self._latest]
        if found and continued:
            return max(found)
        copied = [self._latest[one] for one in entry.copied if one in self._latest]
        return max(copied, default=entry.donor)

    def phase(self, forward: Forward, where: Positions, entry: LedgerStep, tokens: Tokens) -> str:
        """Prefill or decode; an engine says how long the prompt of a request is."""
        prompt = None if forward.part_of is None else forward.part_of.prompt
        if prompt is None:
            again = 0
            if not entry.routine and _extends(tokens, self._before):
                again = len(tokens[0]) - len(self._before[0])
            return self._phases.of(forward, where, entry, entry.grown or again)
        return "decode" if where[0][0] >= prompt else "prefill"

    def fed(self, beginning: Beginning, waiting: Waiting) -> tuple[int | None, ...] | None:
        """The tokens fed now, if they are the ones chosen after the step that waits."""
        tokens, before = beginning.tokens, waiting.step
        if before.packed is not None:
            fed = [beginning.fed[one] for one in waiting.caches if one in beginning.fed]
            return tuple(fed) if before.top else None
        moved = any(one.kind != "crop" for one in beginning.changes)
        if tokens is None or moved or tokens.dim() != 2:
            return None
        if not waiting.caches:
            rows = tuple(tuple(row) for row in tokens.tolist())
            return tuple(row[before.new] for row in rows) if _extends(rows, before.tokens) else None
        if not beginning.caches & waiting.caches:
            return None
        if not self._phases.decodes(tokens.shape[1], before):
            return None
        return tuple(tokens[:, 0].tolist())


def _extends(tokens: Tokens, before: Tokens) -> bool:
    """Whether every sequence begins with what it was before, and goes on."""
    return len(tokens) == len(before) > 0 and all(
        len(now) > len(old) > 0 and now[: len(old)] == old
        for now, old in zip(tokens, before, strict=True)
    )


def slides(now: Sequence[Sequence[int]], before: Sequence[Sequence[int]]) -> bool:
    """Whether a full window went on by a token: the first left it, another came in."""
    return len(now) == len(before) > 0 and all(
        len(one) == len(other) > 1 and one[:-1] == other[1:]
        for one, other in zip(now, before, strict=True)
    )
