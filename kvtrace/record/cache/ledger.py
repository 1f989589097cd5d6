"""Cells and runs of every cache layer: what a forward wrote, what its attention was given.

From updates and calls to `CacheStep`s. A cache of a known kind that nobody touched is followed by
arithmetic; everything else row by row, by content. Knows no files; keeps references to tensors
only where rows must be compared with those of the next forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from kvtrace.record.cache import books
from kvtrace.record.cache.adopted import Copies
from kvtrace.record.cache.beyond import rows_seen
from kvtrace.record.cache.books import EMPTY, Book, Entry
from kvtrace.record.cache.content import Recogniser
from kvtrace.record.cache.own.caches import OwnCaches
from kvtrace.record.cache.own.derived import Derived
from kvtrace.record.cache.pool import Pools
from kvtrace.record.cache.reads import Read, reads
from kvtrace.record.cache.routine import Routine, routine
from kvtrace.record.cache.step import LedgerStep, step_of_steady
from kvtrace.record.cache.stores import Stores
from kvtrace.record.cache.updates import (
    following,
    is_simple,
    joined,
    new_rows,
    numbered,
    places_of,
    sizes_of,
)
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import CacheChange, CacheUpdate, Forward
from kvtrace.record.capture.tokens.positions import Positions
from kvtrace.trace import CacheEvent

MAX_BOOKS = 4096
"""Cache layers of cache objects that are remembered; older ones start anew if they come back."""


@dataclass(slots=True)
class _Work:
    """One forward being entered.

    Attributes:
        forward: It.
        positions: Of its tokens.
        out: What will be said of it.
        stores: Cache layer of each update.
        entries: Cache layer to what happened to it.
        memo: What was worked out already, for layers that share it.
        behind: Rows behind the new ones that are seen of the buffer being entered.
    """

    forward: Forward
    positions: Positions
    out: LedgerStep
    stores: list[int] = field(default_factory=list)
    entries: dict[int, Entry] = field(default_factory=dict)
    memo: dict[tuple[object, ...], Entry] = field(default_factory=dict)
    behind: int = 0


class Ledger:
    """Follows every cache layer through the run."""

    def __init__(self) -> None:
        self.stores = Stores()
        self._books: dict[tuple[int, int], Book] = {}
        self._homes: dict[tuple[int, int], int] = {}
        self._content = Recogniser(self.stores)
        self._own = OwnCaches(self.stores)
        self._pools = Pools(self.stores)
        self._copies = Copies()
        self._routine: Routine | None = None
        self._abreast: Entry | None = None

    def step(self, forward: Forward, positions: Positions, number: int = 0) -> LedgerStep:
        """Enter a forward.

        Args:
            forward: With its updates, changes and calls.
            positions: Of its tokens.
            number: Of the step.
        """
        self._pools.begin(number)
        again = self._steady_step(forward, positions) or self._own_steady_step(forward)
        if again is not None:
            return again
        self._settle()
        out = LedgerStep(reads=reads(forward))
        events = [self._change(one) for one in forward.changes]
        out.events = joined(event for event in events if event.layers)
        work = _Work(forward, positions, out)
        read = {one.update for one in out.reads if one.source == "cache"}
        self._own.begin()
        made_from = {one.update for one in out.reads if one.source == "derived"} - read
        seen = rows_seen(forward, out.reads)
        for index, (nth, update) in enumerate(numbered(forward.updates)):
            store = self.stores.of_update(update, nth, latent=index in made_from)
            work.stores.append(store)
            update = self._copies.adopted(index, store, forward, self._books)
            work.behind = max(0, seen.get(index, 0) - update.length)
            if work.behind:
                update = update._replace(length=seen[index], known=False)
            out.caches.add(update.cache)
            work.entries[store] = self._update(store, update, work)
            self.stores.judge(store, update)
            self._homes[update.cache, update.layer] = store
        self._copies.over(out)
        self._copies.earlier.note(number, forward.updates, work.stores, work.entries)
        for place, call in enumerate(forward.calls):
            out.stores.append(self._read(place, call, work))
        self._own_caches(out)
        self._borrowed(work)
        # a layer may write several parts of its memory; the last time all are there
        for memory in {(one.cache, one.layer): one for one in forward.recurrent}.values():
            self.stores.of_recurrent(memory)
        out.groups = books.grouped(work.entries)
        self._forget()
        self._routine = routine(forward, out, work.stores)
        self._abreast = next(iter(work.entries.values()), None)
        return out

    def _steady_step(self, forward: Forward, positions: Positions) -> LedgerStep | None:
        """The step before once more, a few rows on: worked out once for all cache layers."""
        last, before = self._routine, self._abreast
        if last is None or before is None or not last.fits(forward, positions):
            return None
        batch = forward.batch
        seq = forward.updates[0].keys.shape[2] if batch is None else batch.seq
        if before.after.rows + forward.new != seq:
            return None
        entry = self._abreast = books.append(before.after, before.next_cell, positions, seq, seq)
        rows = {}
        if batch is None:
            for store, update in zip(last.stores, forward.updates, strict=True):
                rows[store] = (update.new_keys, update.new_values)
        groups = (books.cache_step(last.stores, entry),)
        out = LedgerStep(groups, (), last.reads, last.read_stores, rows, {}, {last.cache})
        out.routine = True
        out.seq = dict.fromkeys(last.stores, seq)
        return out

    def _own_steady_step(self, forward: Forward) -> LedgerStep | None:
        """The same of a cache of the model's own."""
        if forward.updates or forward.changes or forward.recurrent or forward.lingering:
            return None
        found = self._own.steady_step(forward.calls)
        if found is None:
            return None
        self._settle()
        step = step_of_steady(*found)
        self._own.derived.over()
        return step

    def _settle(self) -> None:
        """The steps of a routine are over: its cache layers stand where the last one left them."""
        last, entry, self._routine = self._routine, self._abreast, None
        if last is None or entry is None:
            return
        for store in last.stores:
            key = (last.cache, store)
            self._books[key] = entry.after
            self._content.attended[key] = entry.attended
            self.stores.next_cell[store] = entry.next_cell

    @property
    def derived(self) -> Derived:
        """Is told of calls while they run, and of forwards that begin."""
        return self._own.derived

    def at(self, forward: Forward) -> tuple[int, ...] | None:
        """Position of a forward's first token per sequence, as its rows tell it; None: unknown."""
        return self._own.at(forward)

    def intact(self, call: AttentionCall) -> bool:
        """Whether what a call was given is there still, as it was when the call was made."""
        return self._own.intact(call)

    # -- updates ---------------------------------------------------------------------------

    def _update(self, store: int, update: CacheUpdate, work: _Work) -> Entry:
        key = (update.cache, store)
        if update.placed is not None:
            entry, work.out.rows[store] = self._pools.update(
                store, update, update.placed, work.positions[0]
            )
            self._books[key] = entry.after
            work.out.seq[store] = update.keys.shape[2]
            return entry
        book = self._books.get(key, EMPTY)
        places = places_of(update, work.forward, work.positions, book)
        seq, kept = sizes_of(update)
        if is_simple(update, book, seq, kept):
            entry = self._appended(store, book, places, (seq, kept), work)
            if not update.settled:
                entry = replace(entry, after=self._content.edited(update, entry.attended, kept))
            work.out.rows[store] = new_rows(update)
            self._content.drop(key)
        else:
            if self._copies.laid:
                self._content.lay(key, update, self._copies.laid)
            if self._copies.made_of is not None:
                self._content.know(key, *self._copies.made_of)
            whole = [(*line, *following(line, work.behind)) for line in places]
            entry, rows = self._content.update(key, update, book, whole, (seq, kept))
            work.out.rows[store] = rows
        self._content.attended[key] = entry.attended
        self._books[key] = entry.after
        work.out.seq[store] = seq
        return entry

    def _appended(
        self,
        store: int,
        book: Book,
        places: Sequence[Sequence[int]],
        sizes: tuple[int, int],
        work: _Work,
    ) -> Entry:
        """An update by arithmetic; worked out once for all layers with the same history."""
        first = self.stores.next_cell[store]
        same = id(places) if places is work.positions else places
        order = (id(book), first, sizes, same)
        entry = work.memo.get(order)
        if entry is None:
            entry = work.memo[order] = books.append(book, first, places, *sizes)
        self.stores.take(store, entry.rows * len(places))
        return entry

    # -- reads -----------------------------------------------------------------------------

    def _read(self, place: int, call: AttentionCall, work: _Work) -> int:
        """The cache layer a call reads; entered if no update did."""
        out = work.out
        read = out.reads[place]
        if read.source == "cache" and read.update is not None:
            return work.stores[read.update]
        if read.source == "cache" and read.lingering is not None:
            left = work.forward.lingering[read.lingering]
            out.caches.add(left.cache)
            store = self._homes.get((left.cache, left.layer))
            if store is not None:
                book = self._books.get((left.cache, store), EMPTY)
                if store not in work.entries:
                    work.entries[store] = self._untouched(store, book, work)
                out.seq.setdefault(store, call.keys.shape[2])
                return store
        origin = limit = None
        if read.source == "derived" and read.update is not None:
            update = work.forward.updates[read.update]
            origin = (work.entries[work.stores[read.update]], update)
            # a buffer is expanded whole; only rows that are written count
            if call.keys.shape[2] == update.keys.shape[2]:
                limit = out.seq[work.stores[read.update]]
        made = self._own.made(call, work.forward, origin, limit)
        if made.cached:
            out.reads[place] = Read("cache")
        if made.slots is not None:
            out.slots[made.store] = made.slots
        work.entries[made.store], out.rows[made.store] = made.entry, made.rows
        out.seq[made.store] = made.seen.step.cells.shape[1]
        return made.store

    def _own_caches(self, out: LedgerStep) -> None:
        """What caches of the model's own say of the whole step."""
        own = self._own
        out.events += own.events
        out.parent, out.own_bytes = own.parent, own.nbytes
        out.grown = own.derived.fed.grown if out.parent is not None else 0
        own.over()

    def _borrowed(self, work: _Work) -> None:
        """Rows of another request that this one begins with."""
        donor = self._pools.donor
        if donor is not None:
            work.out.donor = donor.step
            layers = tuple(work.entries)
            if donor.length > donor.kept:
                before, after = (donor.length,) * len(layers), (donor.kept,) * len(layers)
                work.out.events += (CacheEvent("crop", layers, before, after),)
        self._pools.over(tuple(work.out.caches))

    def _untouched(self, store: int, book: Book, work: _Work) -> Entry:
        """A step that read rows and wrote none."""
        first = self.stores.next_cell[store]
        entry = work.memo.get((id(book), first))
        if entry is None:
            entry = work.memo[id(book), first] = Entry(book.held, book, first, 0, book.rows)
        return entry

    # -- changes ---------------------------------------------------------------------------

    def _change(self, change: CacheChange) -> CacheEvent:
        """Move the books as the cache was changed; books shared before are shared after."""
        moved: dict[tuple[int, int, int], Book] = {}
        touched, before, after, order = [], [], [], change.order[:0]
        for place, layer in enumerate(change.layers):
            store = self._homes.get((change.cache, layer))
            if store is None:
                continue
            key = (change.cache, store)
            book = self._books.get(key, EMPTY)
            order = books.order_of(book, change)
            same = (id(book), change.removed[place], change.after[place])
            if same not in moved:
                moved[same] = books.changed(book, change, layer)
            self._books[key] = moved[same]
            self._content.drop(key)
            touched.append(store)
            before.append(change.before[place])
            after.append(change.after[place])
        return CacheEvent(change.kind, tuple(touched), tuple(before), tuple(after), order)

    def _forget(self) -> None:
        """Drop what belongs to caches not seen for long."""
        while len(self._books) > MAX_BOOKS:
            key = next(iter(self._books))
            del self._books[key]
            self._content.drop(key)
            self._content.attended.pop(key, None)
        while len(self._homes) > MAX_BOOKS:
            del self._homes[next(iter(self._homes))]
