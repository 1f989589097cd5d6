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
    """A cache layer that went on with another's rows.

    Attributes:
        layer: It.
        before, after: Rows there were, and were taken.
        order: Sequence that each took over; none: as many times each as fit.
    """

    layer: int
    before: int
    after: int
    order: tuple[int, ...] = ()


class Copies:
    """Takes over the books of what was copied."""

    __slots__ = ("_donor", "_made", "_taken")

    def __init__(self) -> None:
        self._donor: int | None = None
        self._made: dict[tuple[int, int, tuple[int, ...]], Book] = {}
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
        count, there = len(found.sequences), len(source.held)
        if max(found.sequences) >= there:
            return update
        alike = (id(source), found.rows, found.sequences)
        if alike not in self._made:
            held = (runs.first(source.held[one], found.rows) for one in found.sequences)
            self._made[alike] = Book(tuple(held))
        in_order = found.sequences == tuple(b * there // count for b in range(count))
        known[key] = self._made[alike]
        self._donor = found.cache
        order = () if in_order else found.sequences
        self._taken.append(_Taken(store, source.rows, found.rows, order))
        return update._replace(continuous=True)

    def over(self, out: LedgerStep) -> None:
        """All updates of a step are entered: it says whose rows it went on with."""
        if self._taken:
            out.copied = self._donor
            if any(one.before > one.after for one in self._taken):
                layers, before, after, _ = zip(*self._taken, strict=True)
                out.events += (CacheEvent("crop", layers, before, after),)
            layers, _, rows, orders = zip(*self._taken, strict=True)
            if orders[0] and len(set(orders)) == 1:
                out.events += (CacheEvent("select", layers, rows, rows, orders[0]),)
        self._taken, self._made, self._donor = [], {}, None
