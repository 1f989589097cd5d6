"""What caches that let rows go held after earlier steps, of which another one may be a copy.

Whoever copies a cache and goes on with the first one, until it lets go of rows, has a copy that
holds what the first one held then. The rows both hold still tell which step that was after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from kvtrace.record.cache import runs
from kvtrace.record.cache.books import Book, Entry
from kvtrace.record.capture.forward import CacheUpdate, CopyOf, Remade
from kvtrace.record.match import digests
from kvtrace.trace.step import Runs

STEPS = 1024
"""The last steps that are remembered, each with all cache layers of a cache."""


class Moment(NamedTuple):
    """A step, and what a cache layer held after it."""

    step: int
    book: Book


class Earlier:
    """The books of caches with windows after each of their steps."""

    __slots__ = ("_begun", "_steps")

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._steps: deque[tuple[int, int, Mapping[int, Book]]] = deque(maxlen=STEPS)

    def note(
        self,
        step: int,
        updates: Sequence[CacheUpdate],
        stores: Sequence[int],
        entries: Mapping[int, Entry],
    ) -> None:
        """A step is entered.

        Args:
            step: Its number.
            updates: Of the forward.
            stores: Cache layer of each.
            entries: Cache layer to what happened to it.
        """
        for cache in {one.cache for one in updates if one.window is not None}:
            mine = [
                (store, one)
                for store, one in zip(stores, updates, strict=True)
                if one.cache == cache
            ]
            if cache in self._begun:
                came = {store: _came_with(one, entries[store]) for store, one in mine}
                self._steps.append((self._begun[cache], cache, came))
            self._steps.append((step, cache, {store: entries[store].after for store, _ in mine}))
        self._begun = {}

    def begins(self, cache: int, step: int) -> None:
        """A cache that a forward met begins as another one was after a step."""
        self._begun[cache] = step

    def latest(self, cache: int, store: int) -> Moment | None:
        """What a cache layer held last, if its cache has a window."""
        return next(self._of(cache, store), None)

    def ending(
        self, update: CacheUpdate, store: int, found: CopyOf, held: Sequence[Runs]
    ) -> Moment | None:
        """After which step the newest rows of a cache were those that one with a window began with.

        Args:
            update: The first one of the copy.
            store: Cache layer.
            found: Of what it is one.
            held: Cells it began with, by sequence.
        """
        if update.window is None or len(found.donors) > 1:
            return None
        lines = [[cell for cell, _ in runs.expanded(one)] for one in held]
        return self._fitting(
            found.pieces[0].cache, store, lines, [p.sequence for p in found.pieces]
        )

    def moment(
        self, update: CacheUpdate, rows: int, store: int, made_of: Remade, now: Book
    ) -> Moment | None:
        """After which step of another cache one was copied; None: it isn't told.

        Args:
            update: The first one of the copy.
            rows: How many it had before.
            store: Cache layer.
            made_of: The other cache, as it is now.
            now: What is known of it.
        """
        if update.window is None or not rows:
            return None
        chosen = list(made_of.sequences)
        known = _cells(made_of.keys[chosen], made_of.values[chosen], [now.held[b] for b in chosen])
        seen = digests(update.keys[:, :, :rows], update.values[:, :, :rows])
        lines = [[cells.get(one) for one in line] for cells, line in zip(known, seen, strict=True)]
        # where the newest row is told, the text before it is
        if any(line[-1] is None for line in lines):
            return None
        return self._fitting(made_of.cache, store, lines, chosen)

    def _fitting(
        self,
        cache: int,
        store: int,
        lines: Sequence[Sequence[int | None]],
        chosen: Sequence[int],
    ) -> Moment | None:
        """The latest step after which the newest rows of some sequences were these cells."""
        for step, book in self._of(cache, store):
            if max(chosen) < len(book.held) and all(
                _fits(line, book, b) for line, b in zip(lines, chosen, strict=True)
            ):
                return Moment(step, Book(tuple(book.held[b] for b in chosen)))
        return None

    def _of(self, cache: int, store: int) -> Iterator[Moment]:
        """What a cache layer held, the latest step first."""
        for step, one, held in reversed(self._steps):
            if one == cache and store in held:
                yield Moment(step, held[store])


def _came_with(update: CacheUpdate, entry: Entry) -> Book:
    """What a cache layer held before its first update."""
    new = update.new_keys.shape[2]
    return Book(tuple(runs.first(one, runs.count(one) - new) for one in entry.attended))


def _cells(keys: Tensor, values: Tensor, held: Sequence[Runs]) -> list[dict[int, int]]:
    """Digest of each row to its cell, by sequence."""
    numbers = digests(keys, values)
    return [
        {number: cell for number, (cell, _) in zip(line, runs.expanded(cells), strict=False)}
        for line, cells in zip(numbers, held, strict=True)
    ]


def _fits(line: Sequence[int | None], book: Book, sequence: int) -> bool:
    """Whether the last cells of a sequence are these, wherever one is known."""
    held = book.held[sequence]
    if runs.count(held) < len(line):
        return False
    cells = [cell for cell, _ in runs.expanded(runs.last(held, len(line)))]
    return all(one is None or one == cell for one, cell in zip(line, cells, strict=True))
