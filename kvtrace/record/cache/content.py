"""Following rows by content, where arithmetic can't tell.

Caches of unknown kinds, and edited ones: what was handed in and what was handed back are known.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvtrace.record.cache import books, runs
from kvtrace.record.cache.adopted import Laid
from kvtrace.record.cache.books import Book, Entry, Row
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.forward import CacheUpdate, Remade
from kvtrace.record.match import digests
from kvtrace.trace.step import Runs

_NONE = -1
"""The cell of what was never written in a step."""

Key = tuple[int, int]
Rows = tuple[Tensor, Tensor]


class Recogniser:
    """Remembers the content of rows that must be recognised.

    Attributes:
        attended: (cache, cache layer) to the rows its attention was given last.
    """

    def __init__(self, stores: Stores) -> None:
        self.attended: dict[Key, tuple[Runs, ...]] = {}
        self._stores = stores
        self._held: dict[Key, list[list[Row]]] = {}

    def drop(self, key: Key) -> None:
        """Forget the content of a cache layer: arithmetic follows it now, or it was changed."""
        if self._held:
            self._held.pop(key, None)

    def lay(self, key: Key, update: CacheUpdate, laid: Laid) -> None:
        """A cache layer holds cells of others, and padding before or behind them.

        Args:
            key: Cache and cache layer.
            update: That met it so.
            laid: Cells by sequence, and their first slots.
        """
        new = update.new_keys.shape[2]
        lines = digests(update.keys[:, :, :-new], update.values[:, :, :-new])
        self._held[key] = []
        for numbers, (cells, first) in zip(lines, laid, strict=True):
            there = dict(enumerate(runs.expanded(cells), first))
            # nobody sees it: it stands before the text, wherever its slot is
            row = [there.get(slot, (_NONE, -1 - slot)) for slot in range(len(numbers))]
            self._held[key].append([Row(n, *one) for n, one in zip(numbers, row, strict=True)])

    def know(self, key: Key, made_of: Remade, book: Book) -> None:
        """A cache layer is made of rows that another one holds.

        Args:
            key: Cache and cache layer.
            made_of: The other one's rows.
            book: What they are.
        """
        chosen = list(made_of.sequences)
        self._held[key] = _rows(digests(made_of.keys[chosen], made_of.values[chosen]), book.held)

    def update(
        self,
        key: Key,
        update: CacheUpdate,
        book: Book,
        places: Sequence[Sequence[int]],
        sizes: tuple[int, int],
    ) -> tuple[Entry, Rows]:
        """An update, by the content of what it handed back.

        Args:
            key: Cache and cache layer.
            update: It.
            book: What was held before.
            places: Positions of the new rows.
            sizes: (rows handed to the attention, rows kept).
        """
        store = key[1]
        seq, kept = sizes
        keys, values = update.keys[:, :, :seq], update.values[:, :, :seq]
        known = self._held.get(key) or self._earlier(key, update)
        new = digests(update.new_keys, update.new_values)
        seen = digests(keys, values)
        first = self._stores.next_cell[store]
        lines = zip(places, seen, new, strict=True)
        whole = [_stretched(line, mine, own) for line, mine, own in lines]
        if any(row.cell == _NONE for line in known for row in line):
            whole = [_told(line, mine) for line, mine in zip(places, known, strict=True)]
        rows, fresh = books.recognise(seen, known, new, first, whole)
        self._stores.take(store, len(fresh) * len(seen))
        attended = tuple(books.as_runs(line) for line in rows)
        held = self._kept(update, rows, kept, known)
        self._held[key] = held
        after = Book(tuple(books.as_runs(line) for line in held))
        rewritten = max(0, len(fresh) - update.new_keys.shape[2])
        before = book.rows if book.held else _came_along(update)
        entry = Entry(attended, after, first, len(fresh), before, rewritten)
        return entry, (_slots(keys, fresh), _slots(values, fresh))

    def edited(self, update: CacheUpdate, attended: tuple[Runs, ...], kept: int) -> Book:
        """What a layer holds after somebody changed it, once its attention had been given it."""
        rows = _rows(digests(update.keys, update.values), attended)
        held = self._kept(update, rows, kept)
        return Book(tuple(books.as_runs(line) for line in held))

    def _earlier(self, key: Key, update: CacheUpdate) -> list[list[Row]]:
        """What was handed back last time, recognisable."""
        attended = self.attended.get(key)
        if update.earlier is None or attended is None:
            return []
        keys, values = update.earlier
        if keys.shape[0] != len(attended):
            return []
        return _rows(digests(keys, values), attended)

    def _kept(
        self,
        update: CacheUpdate,
        rows: list[list[Row]],
        kept: int,
        known: Sequence[Sequence[Row]] = (),
    ) -> list[list[Row]]:
        """Which of the rows attended to, or known of earlier, the layer holds now."""
        seq = len(rows[0]) if rows else 0
        held = update.held_keys
        if held is None or update.held_values is None or "Quantized" in update.class_name:
            return rows
        if held.shape[2] == seq == kept and held.data_ptr() == update.keys.data_ptr():
            return rows
        if held.shape[:2] != update.keys.shape[:2]:
            return rows
        out = []
        # rows that are kept in a narrower type are known by what is made of them
        keys, values = held.to(update.keys.dtype), update.held_values.to(update.values.dtype)
        numbers = digests(keys[:, :, :kept], values[:, :, :kept])
        earlier = (*known, *((),) * len(rows))
        for line, mine, before in zip(rows, numbers, earlier, strict=False):
            by_digest = {row.digest: row for row in (*before, *line)}
            out.append([by_digest[number] for number in mine if number in by_digest])
        return out


def _came_along(update: CacheUpdate) -> int:
    """Rows that a cache had when it was first met: of tokens that nobody saw."""
    if update.part != "self" or update.continuous:
        return 0
    return max(0, update.length - update.new_keys.shape[2])


def _rows(numbers: list[list[int]], attended: Sequence[Runs]) -> list[list[Row]]:
    """Rows by content, from their digests and their cells."""
    found = []
    for mine, line in zip(numbers, attended, strict=False):
        pairs = zip(mine, runs.expanded(line), strict=False)
        found.append([Row(number, *row) for number, row in pairs])
    return found


def _told(places: Sequence[int], known: Sequence[Row]) -> list[int]:
    """Positions for every slot, as they are known, and the given ones at the end."""
    return [row.position for row in known] + list(places)


def _stretched(places: Sequence[int], seen: Sequence[int], new: Sequence[int]) -> list[int]:
    """Positions for every slot: the given ones at the end, or where a buffer has the new rows."""
    seq, last = len(seen), len(seen) - len(new)
    slots = range(last, -1, -1) if new and new[0] in seen else ()
    there = (slot for slot in slots if seen[slot : slot + len(new)] == new)
    first = next(there, seq - len(places))
    start = places[0] if places else 0
    before, behind = range(start - first, start), range(first + len(places), seq)
    past = (places[-1] + 1 if places else start) - first - len(places)
    return [*before, *places, *(slot + past for slot in behind)][:seq]


def _slots(rows: Tensor, slots: list[int]) -> Tensor:
    """Some rows of [sequences, heads, seq, dim]; a view where they follow each other."""
    if not slots:
        return rows[:, :, :0]
    first, after = slots[0], slots[-1] + 1
    return rows[:, :, first:after] if after - first == len(slots) else rows[:, :, slots]
