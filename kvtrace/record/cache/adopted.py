"""What goes on with the books of other caches, whose rows it began with as copies."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvtrace.record.cache import runs
from kvtrace.record.cache.books import Book
from kvtrace.record.cache.runs import Runs
from kvtrace.record.capture.forward import CacheUpdate, CopyOf, Forward, Piece, Remade
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


Laid = tuple[tuple[Runs, int], ...]
"""Cells of each sequence of a batch with padding, and the slot of the first one."""


class Copies:
    """Takes over the books of what was copied."""

    __slots__ = ("_donors", "_made", "_taken", "laid", "made_of")

    def __init__(self) -> None:
        self._donors: set[int] = set()
        self._made: dict[object, Book] = {}
        self._taken: list[_Taken] = []
        self.laid: Laid = ()
        self.made_of: Remade | None = None

    def adopted(
        self,
        index: int,
        store: int,
        forward: Forward,
        known: MutableMapping[tuple[int, int], Book],
    ) -> CacheUpdate:
        """An update, its cache's book in `known` where it was copied from one that is there.

        Where sequences have padding, what it holds is `laid` out instead; where rows were changed
        or left out, the book is that of what it was `made_of`.
        """
        update = forward.updates[index]
        self.laid, self.made_of = (), None
        found = next((one for one in forward.copies if one.update == index), None)
        if found is None or ((update.cache, store) in known and update.earlier is None):
            return update
        if isinstance(found, Remade):
            return self._remade(update, store, found, known)
        books = {one: known.get((one, store)) for one in {one.cache for one in found.pieces}}
        held = [_cells(one, books) for one in found.pieces]
        if not all(held):
            return update
        self._donors |= books.keys()
        if not found.whole:
            self.laid = tuple((one, p.first) for one, p in zip(held, found.pieces, strict=True))
            return update
        alike = (tuple(map(id, books.values())), found.rows, found.pieces)
        if alike not in self._made:
            self._made[alike] = Book(tuple(held))
        known[update.cache, store] = self._made[alike]
        self._take(store, found, [one for one in books.values() if one is not None])
        return update._replace(continuous=True)

    def _remade(
        self,
        update: CacheUpdate,
        store: int,
        found: Remade,
        known: MutableMapping[tuple[int, int], Book],
    ) -> CacheUpdate:
        """The same update, to be followed by content: it begins where what it is made of was."""
        source = known.get((found.cache, store))
        if source is not None and max(found.sequences) < len(source.held):
            self._donors.add(found.cache)
            self.made_of = found
            known[update.cache, store] = Book(tuple(source.held[one] for one in found.sequences))
        return update

    def _take(self, store: int, found: CopyOf, books: Sequence[Book]) -> None:
        """Of one cache, the rows that were left out and the order of its sequences are told."""
        if len(books) > 1:
            return
        count, there = len(found.pieces), len(books[0].held)
        order = tuple(one.sequence for one in found.pieces)
        in_order = order == tuple(b * there // count for b in range(count))
        self._taken.append(_Taken(store, books[0].rows, found.rows, () if in_order else order))

    def over(self, out: LedgerStep) -> None:
        """All updates of a step are entered: it says whose rows it went on with."""
        out.copied = frozenset(self._donors)
        if self._taken:
            if any(one.before > one.after for one in self._taken):
                layers, before, after, _ = zip(*self._taken, strict=True)
                out.events += (CacheEvent("crop", layers, before, after),)
            layers, _, rows, orders = zip(*self._taken, strict=True)
            if orders[0] and len(set(orders)) == 1:
                out.events += (CacheEvent("select", layers, rows, rows, orders[0]),)
        self._taken, self._made, self._donors = [], {}, set()


def _cells(piece: Piece, books: Mapping[int, Book | None]) -> Runs:
    """The cells of a sequence's rows; none where they are not known."""
    book = books[piece.cache]
    if book is None or piece.sequence >= len(book.held):
        return ()
    held = book.held[piece.sequence]
    return runs.first(held, piece.rows) if runs.count(held) >= piece.rows else ()
