"""What one cache layer of one cache object holds, as runs over cells, and how a step moves it.

A book is a value: layers with the same history share one, so that a step is worked out once for
all of them. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from kvtrace.record.cache import runs
from kvtrace.record.capture.forward import CacheChange
from kvtrace.trace import CacheStep, PoolRun
from kvtrace.trace.step import Runs


class Book(Struct, frozen=True, eq=False):
    """Cells held, per sequence.

    Attributes:
        held: Per sequence, in slot order.
    """

    held: tuple[Runs, ...] = ()

    @property
    def rows(self) -> int:
        """Rows held."""
        return max([runs.count(one) for one in self.held], default=0)


EMPTY = Book()


class Entry(Struct, frozen=True, eq=False):
    """One step of one book.

    Attributes:
        attended: Per sequence: what the attention was given.
        after: What is held afterwards.
        first_cell: First cell written.
        rows: Cells written per sequence.
        before: Rows held before.
        rewritten: Of the written ones, those that replaced older ones.
        pool: Per sequence: where the rows attended to lie, in a pool that requests share.
    """

    attended: tuple[Runs, ...]
    after: Book
    first_cell: int
    rows: int
    before: int
    rewritten: int = 0
    pool: tuple[tuple[PoolRun, ...], ...] = ()

    @property
    def next_cell(self) -> int:
        """The cell after those that were written."""
        return self.first_cell + self.rows * len(self.attended)


def append(
    book: Book,
    first_cell: int,
    positions: Sequence[Sequence[int]],
    seq: int,
    kept: int,
) -> Entry:
    """An update of a cache that adds rows at the end.

    Args:
        book: Held before.
        first_cell: Number of the first cell to be written.
        positions: Of the new rows, [sequences][new].
        seq: Rows handed to the attention: all, or the last ones of a window.
        kept: Rows the layer keeps.
    """
    sequences, new = len(positions), len(positions[0])
    held = book.held or ((),) * sequences
    attended, after = [], []
    for sequence, places in enumerate(positions):
        size = runs.count(held[sequence])
        fresh = runs.written(first_cell + sequence * new, places, size)
        whole, size = runs.joint(held[sequence], fresh), size + new
        attended.append(whole if seq >= size else runs.last(whole, seq))
        after.append(whole if kept >= size else runs.last(whole, kept))
    return Entry(tuple(attended), Book(tuple(after)), first_cell, new, book.rows)


class Row(Struct, frozen=True):
    """A row that is known by its content: its digest, cell and position.

    A negative cell stands for padding that was put into a cache between forwards.
    """

    digest: int
    cell: int
    position: int


def recognise(
    seen: Sequence[Sequence[int]],
    known: Sequence[Sequence[Row]],
    new: Sequence[Collection[int]],
    first_cell: int,
    places: Sequence[Sequence[int]],
) -> tuple[list[list[Row]], list[int]]:
    """Cells of rows by content: the one expected in that slot, a new one, or one from elsewhere.

    Args:
        seen: Digests of the rows, [sequences][seq].
        known: Rows of earlier, per sequence in slot order.
        new: Digests of the rows just handed in, per sequence.
        first_cell: Number of the first cell to be written.
        places: Position of each row if it is new, [sequences][seq].

    Returns:
        Per sequence its rows, and the slots that hold new ones (in any sequence).
    """
    elsewhere = {row.digest: row for rows in known for row in reversed(rows) if row.cell >= 0}
    joined = any(row.cell < 0 for rows in known for row in rows)
    found: list[list[Row | None]] = []
    for sequence, digests in enumerate(seen):
        mine = known[sequence] if sequence < len(known) else ()
        fresh_ones = new[sequence] if sequence < len(new) else ()
        line: list[Row | None] = []
        for slot, digest in enumerate(digests):
            if slot < len(mine) and mine[slot].digest == digest:
                line.append(mine[slot] if mine[slot].cell >= 0 else None)
            else:
                line.append(None if digest in fresh_ones else elsewhere.get(digest))
        found.append(line)
    seq = len(seen[0]) if seen else 0
    fresh = [slot for slot in range(seq) if any(line[slot] is None for line in found)]
    for sequence, line in enumerate(found):
        start = first_cell + sequence * len(fresh)
        for order, slot in enumerate(fresh):
            if joined and line[slot] is not None:
                continue  # where others have padding: its own row is as it was
            digest, place = seen[sequence][slot], places[sequence][slot]
            line[slot] = Row(digest, start + order, place)
    return [[row for row in line if row is not None] for line in found], fresh


def as_runs(rows: Sequence[Row]) -> Runs:
    """Rows in slots from 0."""
    return runs.picked((row.cell, row.position) for row in rows)


def order_of(book: Book, change: CacheChange) -> tuple[int, ...]:
    """The sequence that each one takes over in a reorder, select or repeat; else nothing."""
    if change.kind == "repeat":
        times = change.order[0] if change.order else 1
        return tuple(row // times for row in range(len(book.held) * times))
    return change.order if change.kind in ("reorder", "select") else ()


def changed(book: Book, change: CacheChange, layer: int) -> Book:
    """The book after a crop, reorder, repeat, select or reset."""
    place = change.layers.index(layer)
    if change.kind == "crop":
        removed, after = change.removed[place], change.after[place]
        cut = (runs.first(one, runs.count(one) - removed) for one in book.held)
        return Book(tuple(runs.last(one, after) for one in cut))
    order = order_of(book, change)
    if order:
        if any(not -len(book.held) <= one < len(book.held) for one in order):
            return EMPTY
        return Book(tuple(book.held[one] for one in order))
    return EMPTY


def grouped(entries: Mapping[int, Entry]) -> tuple[CacheStep, ...]:
    """One CacheStep for all cache layers that share an entry."""
    groups: dict[int, list[int]] = {}
    by_id = {}
    for store, entry in entries.items():
        groups.setdefault(id(entry), []).append(store)
        by_id[id(entry)] = entry
    return tuple(cache_step(tuple(layers), by_id[key]) for key, layers in groups.items())


def cache_step(layers: tuple[int, ...], entry: Entry) -> CacheStep:
    """What happened to these cache layers, as the trace tells it."""
    held = entry.after.held or ((),) * len(entry.attended)
    return CacheStep(
        layers,
        entry.first_cell,
        entry.rows,
        entry.attended,
        held,
        entry.before,
        entry.after.rows,
        entry.rewritten,
        entry.pool,
    )
