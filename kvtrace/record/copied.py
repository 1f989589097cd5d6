"""Caches that begin with the rows of another: a prefix that was copied, repeated or made anew.

A cache that is met with rows in it is held, bit by bit, against those that are known. One that
equals another goes on with its cells, its tokens and its step.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from kvtrace.record import runs
from kvtrace.record.books import Book
from kvtrace.record.forward import CacheUpdate, CopyOf, Forward
from kvtrace.record.match import same
from kvtrace.record.tracker import CacheTracker
from kvtrace.trace import CacheEvent

if TYPE_CHECKING:
    from kvtrace.record.ledger import LedgerStep


def copies(tracker: CacheTracker, updates: Sequence[CacheUpdate]) -> tuple[CopyOf, ...]:
    """Which updates went to a cache that was met with another's rows in it."""
    met = [(index, one) for index, one in enumerate(updates) if _is_met_filled(one)]
    if not met:
        return ()
    live: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    for cache, layer, keys, values in tracker.live():
        live.setdefault(layer, []).append((cache, keys, values))
    found = (_copy_of(index, one, live.get(one.layer, ())) for index, one in met)
    return tuple(one for one in found if one is not None)


def _is_met_filled(update: CacheUpdate) -> bool:
    fresh = not update.continuous and update.earlier is None
    return fresh and update.known and update.placed is None and _before(update) > 0


def _before(update: CacheUpdate) -> int:
    """Rows that were there before."""
    seq = update.keys.shape[2]
    seq = seq if update.capacity is None else min(seq, update.length)
    return seq - update.new_keys.shape[2]


def _copy_of(
    index: int, update: CacheUpdate, live: Sequence[tuple[int, Tensor, Tensor]]
) -> CopyOf | None:
    rows = _before(update)
    for cache, keys, values in live:
        if cache == update.cache:
            continue
        if _equal(update.keys, keys, rows) and _equal(update.values, values, rows):
            return CopyOf(index, cache, rows)
    return None


def _equal(mine: Tensor, theirs: Tensor, rows: int) -> bool:
    """Whether the first rows are the same, each sequence as often as it takes."""
    if theirs.shape[2] < rows or theirs.device != mine.device or mine.shape[0] % theirs.shape[0]:
        return False
    times = mine.shape[0] // theirs.shape[0]
    first = theirs[:, :, :rows]
    return same(mine[:, :, :rows], first if times == 1 else first.repeat_interleave(times, 0))


class _Taken(NamedTuple):
    """A cache layer that went on with another's rows: how many there were, and were taken."""

    layer: int
    before: int
    after: int


class Copies:
    """Takes over the books of what was copied."""

    __slots__ = ("_donor", "_made", "_taken")

    def __init__(self) -> None:
        self._donor: int | None = None
        self._made: dict[tuple[int, int, int], Book] = {}
        self._taken: list[_Taken] = []

    def adopted(
        self,
        index: int,
        store: int,
        forward: Forward,
        known: MutableMapping[tuple[int, int], Book],
    ) -> CacheUpdate:
        """An update, its cache's book in `known` where it was copied from one that is there."""
        update = forward.updates[index]
        found = next((one for one in forward.copies if one.update == index), None)
        key = (update.cache, store)
        source = None if found is None else known.get((found.cache, store))
        if found is None or source is None or key in known or source.rows < found.rows:
            return update
        if update.keys.shape[0] % len(source.held):
            return update
        times = update.keys.shape[0] // len(source.held)
        alike = (id(source), found.rows, times)
        if alike not in self._made:
            held = (runs.first(one, found.rows) for one in source.held for _ in range(times))
            self._made[alike] = Book(tuple(held))
        known[key] = self._made[alike]
        self._donor = found.cache
        self._taken.append(_Taken(store, source.rows, found.rows))
        return update._replace(continuous=True)

    def over(self, out: LedgerStep) -> None:
        """All updates of a step are entered: it says whose rows it went on with."""
        if self._taken:
            out.copied = self._donor
            if any(one.before > one.after for one in self._taken):
                layers, before, after = zip(*self._taken, strict=True)
                out.events += (CacheEvent("crop", layers, before, after),)
        self._taken, self._made, self._donor = [], {}, None
