"""What goes on with the books of another cache, whose rows it began with as a copy."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from kvtrace.record.cache import runs
from kvtrace.record.cache.books import Book
from kvtrace.record.capture.forward import CacheUpdate, Forward
from kvtrace.trace import CacheEvent

if TYPE_CHECKING:
    from kvtrace.record.cache.step import LedgerStep


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
