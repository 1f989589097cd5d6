"""What goes on with the books of other caches, whose rows it began with as copies."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvtrace.record.cache import books, runs
from kvtrace.record.cache.books import EMPTY, Book
from kvtrace.record.cache.earlier import Earlier
from kvtrace.record.capture.forward import CacheUpdate, CopyOf, Forward, Piece, Remade
from kvtrace.trace import CacheEvent
from kvtrace.trace.step import Runs

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


class _Donor(NamedTuple):
    """A layer of a cache whose rows another one began with.

    Attributes:
        before: It after its own latest step.
        book: It as it was copied: somebody may have changed it since.
        order: Sequence of `before` that each of `book` is.
        history: The same for layers that went the same way.
    """

    before: Book
    book: Book
    order: tuple[int, ...]
    history: tuple[object, ...]

    @classmethod
    def of(
        cls,
        cache: int,
        store: int,
        layer: int,
        forward: Forward,
        known: Mapping[tuple[int, int], Book],
    ) -> _Donor:
        """It as a forward met the copy; an empty book where it is not known."""
        book = before = known.get((cache, store), EMPTY)
        order, history = tuple(range(len(book.held))), [id(before)]
        for change in forward.pending:
            if change.cache != cache or layer not in change.layers:
                continue
            place = change.layers.index(layer)
            history += id(change), change.removed[place], change.after[place]
            taken, book = books.order_of(book, change), books.changed(book, change, layer)
            if taken and book.held:
                order = tuple(order[one] for one in taken)
        return cls(before, book, order, tuple(history))


Laid = tuple[tuple[Runs, int], ...]
"""Cells of each sequence of a batch with padding, and the slot of the first one."""


class Copies:
    """Takes over the books of what was copied."""

    __slots__ = ("_donors", "_made", "_moments", "_taken", "earlier", "laid", "made_of")

    def __init__(self) -> None:
        self.earlier = Earlier()
        self._donors: set[int] = set()
        self._moments: set[int] = set()
        self._made: dict[object, Book] = {}
        self._taken: list[_Taken] = []
        self.laid: Laid = ()
        self.made_of: tuple[Remade, Book] | None = None

    def adopted(
        self,
        index: int,
        store: int,
        forward: Forward,
        known: MutableMapping[tuple[int, int], Book],
    ) -> CacheUpdate:
        """An update, its cache's book in `known` where it was copied from one that is there.

        Where sequences have padding, what it holds is `laid` out instead; where rows were changed
        or left out, the book is that of what it was `made_of`, now or after an earlier step.
        """
        update = forward.updates[index]
        self.laid, self.made_of = (), None
        found = next((one for one in forward.copies if one.update == index), None)
        if found is None or ((update.cache, store) in known and update.earlier is None):
            return update
        if isinstance(found, Remade):
            return self._remade(update, store, found, forward, known)
        donors = {one: _Donor.of(one, store, update.layer, forward, known) for one in found.donors}
        held = [_cells(one, donors[one.cache].book) for one in found.pieces]
        if not all(held):
            return update
        moment = self.earlier.ending(update, store, found, held) if found.whole else None
        if moment is not None:
            self.earlier.begins(update.cache, moment.step)
            if moment != self.earlier.latest(found.pieces[0].cache, store):
                self._moments.add(moment.step)
                known[update.cache, store] = moment.book
                return update._replace(continuous=True)
        self._donors |= donors.keys()
        if not (found.whole and update.known):  # its rows are followed by content
            self.laid = tuple((one, p.first) for one, p in zip(held, found.pieces, strict=True))
        if not found.whole:
            return update
        alike = (tuple(one.history for one in donors.values()), found.rows, found.pieces)
        if alike not in self._made:
            self._made[alike] = Book(tuple(held))
        known[update.cache, store] = self._made[alike]
        self._take(store, found, tuple(donors.values()))
        return update._replace(continuous=True)

    def _remade(
        self,
        update: CacheUpdate,
        store: int,
        found: Remade,
        forward: Forward,
        known: MutableMapping[tuple[int, int], Book],
    ) -> CacheUpdate:
        """The same update, to be followed by content: it begins where what it is made of was."""
        source = _Donor.of(found.cache, store, update.layer, forward, known).book
        if max(found.sequences) >= len(source.held):
            return update
        mine = Book(tuple(source.held[one] for one in found.sequences))
        self.made_of = found, mine
        moment = self.earlier.moment(update, found.rows, store, found, source)
        if moment is None:
            self._donors.add(found.cache)
            known[update.cache, store] = mine
        else:
            self._moments.add(moment.step)
            self.earlier.begins(update.cache, moment.step)
            known[update.cache, store] = moment.book
        return update

    def _take(self, store: int, found: CopyOf, donors: Sequence[_Donor]) -> None:
        """Of one cache, the rows that were left out and the order of its sequences are told."""
        if len(donors) > 1:
            return
        before = donors[0].before
        count, there = len(found.pieces), len(before.held)
        order = tuple(donors[0].order[one.sequence] for one in found.pieces)
        in_order = order == tuple(b * there // count for b in range(count))
        self._taken.append(_Taken(store, before.rows, found.rows, () if in_order else order))

    def over(self, out: LedgerStep) -> None:
        """All updates of a step are entered: it says whose rows it went on with."""
        out.copied = frozenset(self._donors)
        out.donor = max(self._moments, default=None)
        if self._taken:
            if any(one.before > one.after for one in self._taken):
                layers, before, after, _ = zip(*self._taken, strict=True)
                out.events += (CacheEvent("crop", layers, before, after),)
            layers, _, rows, orders = zip(*self._taken, strict=True)
            if orders[0] and len(set(orders)) == 1:
                out.events += (CacheEvent("select", layers, rows, rows, orders[0]),)
        self._taken, self._made, self._donors, self._moments = [], {}, set(), set()


def _cells(piece: Piece, book: Book) -> Runs:
    """The cells of a sequence's rows; none where they are not known."""
    if piece.sequence >= len(book.held):
        return ()
    held = book.held[piece.sequence]
    return runs.first(held, piece.rows) if runs.count(held) >= piece.rows else ()
