"""Following rows by content, where arithmetic can't tell.

Unknown caches, edited ones, and rows that are made anew for each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvtrace.record import books, runs
from kvtrace.record.books import Book, Entry, Row
from kvtrace.record.calls import AttentionCall
from kvtrace.record.forward import CacheUpdate
from kvtrace.record.match import digests, same
from kvtrace.record.runs import Runs
from kvtrace.record.stores import Stores

Key = tuple[int, int]
Rows = tuple[Tensor, Tensor]


@dataclass(slots=True)
class _Expanded:
    """Rows made anew for each call, as they were last."""

    keys: Tensor
    values: Tensor
    attended: tuple[Runs, ...]


class Recogniser:
    """Remembers the content of rows that must be recognised.

    Attributes:
        attended: (cache, cache layer) to the rows its attention was given last.
    """

    def __init__(self, stores: Stores) -> None:
        self.attended: dict[Key, tuple[Runs, ...]] = {}
        self._stores = stores
        self._held: dict[Key, list[list[Row]]] = {}
        self._expanded: dict[int, _Expanded] = {}

    def drop(self, key: Key) -> None:
        """Forget the content of a cache layer: arithmetic follows it now, or it was changed."""
        if self._held:
            self._held.pop(key, None)

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
        whole = [_stretched(line, seq) for line in places]
        rows, fresh = books.recognise(seen, known, new, first, whole)
        self._stores.take(store, len(fresh) * len(seen))
        attended = tuple(books.as_runs(line) for line in rows)
        held = self._kept(update, rows, kept)
        self._held[key] = held
        after = Book(tuple(books.as_runs(line) for line in held))
        rewritten = max(0, len(fresh) - update.new_keys.shape[2])
        entry = Entry(attended, after, first, len(fresh), book.rows, rewritten)
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

    def _kept(self, update: CacheUpdate, rows: list[list[Row]], kept: int) -> list[list[Row]]:
        """Which of the rows attended to the layer holds now."""
        seq = len(rows[0]) if rows else 0
        held = update.held_keys
        if held is None or update.held_values is None or "Quantized" in update.class_name:
            return rows
        if held.shape[2] == seq == kept and held.data_ptr() == update.keys.data_ptr():
            return rows
        if held.shape[:2] != update.keys.shape[:2]:
            return rows
        out = []
        numbers = digests(held[:, :, :kept], update.held_values[:, :, :kept])
        for line, mine in zip(rows, numbers, strict=True):
            by_digest = {row.digest: row for row in line}
            out.append([by_digest[number] for number in mine if number in by_digest])
        return out

    def expanded(
        self,
        store: int,
        call: AttentionCall,
        origin: Entry | None,
        positions: Sequence[Sequence[int]],
        limit: int | None,
    ) -> tuple[Entry, Rows]:
        """Rows that a call made for itself: those unchanged since last time keep their cells.

        Args:
            store: Its cache layer.
            call: It.
            origin: The step of the cache layer they were made from, if they were.
            positions: Of the forward's tokens.
            limit: Rows that are written, where a buffer has more.
        """
        seq = min(call.keys.shape[2], limit or call.keys.shape[2])
        keys, values = call.keys[:, :, :seq], call.values[:, :, :seq]
        last = self._expanded.get(store)
        prefix = _common(last, keys, values, call.queries.shape[2])
        places = [_places(origin, number, seq, positions) for number in range(keys.shape[0])]
        if last is not None and origin is not None and seq - prefix > origin.rows:
            attended, fresh = self._moved(store, last, (keys, values), places)
        else:
            attended, fresh = self._grown(store, last, prefix, places), list(range(prefix, seq))
        self._expanded[store] = _Expanded(keys, values, attended)
        rows = _slots(keys, fresh), _slots(values, fresh)
        first = self._stores.next_cell[store] - len(fresh) * keys.shape[0]
        if origin is None:
            nothing = Book(((),) * keys.shape[0])
            return Entry(attended, nothing, first, len(fresh), 0), rows
        before = 0 if last is None else max(runs.count(one) for one in last.attended)
        rewritten = 0 if last is None else max(0, len(fresh) - origin.rows)
        return Entry(attended, Book(attended), first, len(fresh), before, rewritten), rows

    def _grown(
        self, store: int, last: _Expanded | None, prefix: int, places: list[list[int]]
    ) -> tuple[Runs, ...]:
        """The first `prefix` rows as they were, new cells for the rest."""
        new = len(places[0]) - prefix
        first = self._stores.take(store, new * len(places))
        attended = []
        for sequence, line in enumerate(places):
            old = () if last is None else runs.first(last.attended[sequence], prefix)
            fresh = runs.written(first + sequence * new, line[prefix:], 0)
            attended.append(runs.appended(old, fresh))
        return tuple(attended)

    def _moved(
        self, store: int, last: _Expanded, rows: Rows, places: list[list[int]]
    ) -> tuple[tuple[Runs, ...], list[int]]:
        """Rows that changed their places, between sequences too; and the slots of new ones."""
        known = _rows(digests(last.keys, last.values), last.attended)
        first = self._stores.next_cell[store]
        found, fresh = books.recognise(digests(*rows), known, (), first, places)
        self._stores.take(store, len(fresh) * len(places))
        return tuple(books.as_runs(line) for line in found), fresh


def _rows(numbers: list[list[int]], attended: Sequence[Runs]) -> list[list[Row]]:
    """Rows by content, from their digests and their cells."""
    found = []
    for mine, line in zip(numbers, attended, strict=False):
        pairs = zip(mine, runs.expanded(line), strict=False)
        found.append([Row(number, *row) for number, row in pairs])
    return found


def _common(last: _Expanded | None, keys: Tensor, values: Tensor, new: int) -> int:
    """Rows at the start that are bit for bit what they were."""
    if last is None or last.keys.shape[0] != keys.shape[0]:
        return 0
    longest = min(last.keys.shape[2], keys.shape[2])
    for rows in dict.fromkeys((longest, min(longest, keys.shape[2] - new))):
        if rows > 0 and _same_start(last, keys, values, rows):
            return rows
    return 0


def _same_start(last: _Expanded, keys: Tensor, values: Tensor, rows: int) -> bool:
    return same(keys[:, :, :rows], last.keys[:, :, :rows]) and same(
        values[:, :, :rows], last.values[:, :, :rows]
    )


def _places(
    origin: Entry | None, sequence: int, seq: int, positions: Sequence[Sequence[int]]
) -> list[int]:
    """Positions of all rows of a sequence."""
    if origin is not None and sequence < len(origin.attended):
        rows = [position for _, position in runs.expanded(origin.attended[sequence])]
        if len(rows) == seq:
            return rows
    if sequence < len(positions) and len(positions[sequence]) == seq:
        return list(positions[sequence])
    return list(range(seq))


def _stretched(places: Sequence[int], seq: int) -> list[int]:
    """Positions for every slot, the given ones at the end."""
    new = len(places)
    start = places[0] if places else 0
    return list(range(start - (seq - new), start)) + list(places)


def _slots(rows: Tensor, slots: list[int]) -> Tensor:
    """Some rows of [sequences, heads, seq, dim]; a view where they follow each other."""
    if not slots:
        return rows[:, :, :0]
    first, after = slots[0], slots[-1] + 1
    return rows[:, :, first:after] if after - first == len(slots) else rows[:, :, slots]
