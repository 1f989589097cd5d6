"""Which cells lie in which slots of a pool: what each request attended to, told by where it lay.

Requests share blocks, take over blocks of others and lose their own. All of it is followed by what
was written where, so that rows that two requests read are one cell. What lies in slots that
somebody else has written to is stored anew when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.cache import runs
from kvtrace.record.cache.books import Book, Entry
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.paged.places import Placed, Slots
from kvtrace.trace import PoolRun
from kvtrace.trace.step import Runs

Numbers = NDArray[np.int64]

_CELL, _STEP, _END = range(3)
MAX_REQUESTS = 4096
"""Requests that are remembered to have been met."""

MAX_POOLS = 8
"""Pools that are remembered; what lies in an older one that comes back is stored anew."""


@dataclass(slots=True)
class _Table:
    """The slots of one group of layers whose cells are numbered alike.

    Attributes:
        begun: The packed forward it begins with.
        first: Number of its first cell.
        slots: Cell in each slot, the step that wrote it, and the length of its sequence then.
        last: What was worked out last: (number of the cache, packed forward), entry, fresh rows.
    """

    begun: int
    first: int
    slots: Numbers = field(default_factory=lambda: np.full((3, 0), -1, np.int64))
    last: tuple[tuple[int, int], Entry, Numbers] | None = None

    def fit(self, *slots: Slots) -> None:
        """Have room for these slots."""
        highest = max((int(one.max()) for one in slots if one.size), default=-1)
        room = self.slots.shape[1]
        if highest >= room:
            more = np.full((3, max(highest + 1, 2 * room) - room), -1, np.int64)
            self.slots = np.concatenate([self.slots, more], axis=1)


class Donor(Struct, frozen=True):
    """Whose rows a request goes on with that was not met before.

    Attributes:
        step: Which wrote the last of them.
        length: Of its sequence after that step.
        kept: How many of its rows are gone on with.
    """

    step: int
    length: int
    kept: int


class Pools:
    """Follows the slots of all pools.

    Attributes:
        step: Number of the step that is entered now.
        donor: Of the step that was entered last; None: its request had been met, or began.
    """

    def __init__(self, stores: Stores) -> None:
        self.step = 0
        self.donor: Donor | None = None
        self._stores = stores
        self._tables: dict[int, dict[int, list[_Table]]] = {}
        self._homes: dict[int, dict[int, _Table]] = {}
        self._met: dict[int, None] = {}

    def begin(self, number: int) -> None:
        """A step is about to be entered."""
        self.step, self.donor = number, None

    def over(self, caches: Sequence[int]) -> None:
        """A step was entered."""
        self._met.update(dict.fromkeys(caches))
        while len(self._met) > MAX_REQUESTS:
            del self._met[next(iter(self._met))]

    def update(
        self, store: int, update: CacheUpdate, placed: Placed, positions: Sequence[int]
    ) -> tuple[Entry, tuple[Tensor, Tensor]]:
        """What an update of one request did, and the rows that it wrote.

        Args:
            store: The cache layer.
            update: It.
            placed: Where its rows lie.
            positions: Of its new tokens.
        """
        table = self._table(store, placed)
        key = (update.cache, placed.forward)
        if table.last is None or table.last[0] != key:
            table.last = (key, *self._entered(table, store, update, placed, positions))
        _, entry, fresh = table.last
        self._stores.take(store, entry.rows)
        if len(fresh) == update.new_keys.shape[2]:
            return entry, (update.keys[:, :, fresh[0] :], update.values[:, :, fresh[0] :])
        rows = fresh.tolist()
        return entry, (update.keys[:, :, rows], update.values[:, :, rows])

    def _table(self, store: int, placed: Placed) -> _Table:
        """The one of a cache layer; layers that begin alike share theirs."""
        homes = self._homes.setdefault(placed.pool, {})
        found = homes.get(store)
        if found is None:
            first = self._stores.next_cell[store]
            tables = self._tables.setdefault(placed.pool, {}).setdefault(placed.group, [])
            alike = (one for one in tables if (one.begun, one.first) == (placed.forward, first))
            found = next(alike, None)
            if found is None:
                found = _Table(placed.forward, first)
                tables.append(found)
            homes[store] = found
            self._stores.say(store, capacity=placed.capacity, block_slots=placed.block)
            while len(self._homes) > MAX_POOLS:
                oldest = next(iter(self._homes))
                del self._homes[oldest], self._tables[oldest]
        return found

    def _entered(
        self,
        table: _Table,
        store: int,
        update: CacheUpdate,
        placed: Placed,
        positions: Sequence[int],
    ) -> tuple[Entry, Numbers]:
        """Worked out once for all layers of a table."""
        table.fit(placed.old, placed.new, *(to for _, to in placed.copied))
        if placed.foreign:
            table.slots[:] = -1
        for source, target in placed.copied:
            table.fit(source)
            table.slots[:, target] = table.slots[:, source]
        old, new = len(placed.old), len(placed.new)
        self._find_donor(table, update.cache, placed.old)
        cells = np.full(old + new, -1, np.int64)
        cells[:old] = np.where(placed.old < 0, -1, table.slots[_CELL, placed.old])
        fresh = np.flatnonzero(cells < 0)
        first = self._stores.next_cell[store]
        cells[fresh] = np.arange(first, first + len(fresh))
        places = np.concatenate([np.arange(old) + positions[0] - old, positions]).astype(np.int64)
        self._write(table, np.concatenate([placed.old, placed.new]), cells, fresh, update.length)
        attended = runs.stretches(cells, np.arange(old + new), places)
        kept = attended if update.held_keys is None else _kept(attended, update.held_keys.shape[2])
        before = update.length - new
        if update.window is not None:
            before = min(before, update.window)
        return Entry(
            (attended,),
            Book((kept,)),
            first,
            len(fresh),
            before,
            len(fresh) - new,
            (_pool_runs(np.concatenate([placed.old, placed.new])),),
        ), fresh

    def _find_donor(self, table: _Table, cache: int, old: Slots) -> None:
        if cache in self._met or not old.size or old[-1] < 0:
            return
        step, length = table.slots[_STEP, old[-1]], table.slots[_END, old[-1]]
        known = bool((table.slots[_CELL, old] >= 0).all())
        if known and (self.donor is None or step > self.donor.step):
            self.donor = Donor(int(step), int(length), len(old))

    def _write(self, table: _Table, slots: Slots, cells: Numbers, fresh: Numbers, end: int) -> None:
        """Rows that were written, and old ones that were met for the first time."""
        there = fresh[slots[fresh] >= 0]
        table.slots[_CELL, slots[there]] = cells[there]
        table.slots[_STEP, slots[there]] = self.step
        table.slots[_END, slots[there]] = end


def _kept(attended: Runs, rows: int) -> Runs:
    return attended if runs.count(attended) <= rows else runs.last(attended, rows)


def _pool_runs(slots: Slots) -> tuple[PoolRun, ...]:
    """Stretches of rows in slots that follow each other, or in none."""
    step = np.diff(slots)
    nowhere = (slots[1:] < 0) & (slots[:-1] < 0)
    cuts = np.flatnonzero(~(((step == 1) & (slots[:-1] >= 0)) | nowhere)) + 1
    starts = [0, *cuts.tolist()]
    ends = [*starts[1:], len(slots)]
    return tuple(
        PoolRun(int(slots[start]), end - start) for start, end in zip(starts, ends, strict=True)
    )
