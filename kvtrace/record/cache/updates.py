"""What updates and changes of caches say by their numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.cache.books import Book
from kvtrace.record.capture.forward import CacheUpdate, Forward
from kvtrace.record.capture.tokens.positions import Positions
from kvtrace.trace import CacheEvent


def joined(events: Iterable[CacheEvent]) -> tuple[CacheEvent, ...]:
    """Events, with what happened to both halves of an encoder-decoder cache told once."""
    out: list[CacheEvent] = []
    for event in events:
        last = out[-1] if out else None
        alike = last is not None and (last.kind, last.order) == (event.kind, event.order)
        if last is None or not alike or not set(last.layers).isdisjoint(event.layers):
            out.append(event)
            continue
        out[-1] = replace(
            last,
            layers=last.layers + event.layers,
            lengths_before=last.lengths_before + event.lengths_before,
            lengths_after=last.lengths_after + event.lengths_after,
        )
    return tuple(out)


def numbered(updates: Sequence[CacheUpdate]) -> Iterator[tuple[int, CacheUpdate]]:
    """Each update with the number of earlier ones of the same layer and part."""
    counts: dict[tuple[str, int], int] = {}
    for update in updates:
        key = (update.part, update.layer)
        yield counts.get(key, 0), update
        counts[key] = counts.get(key, 0) + 1


def is_simple(update: CacheUpdate, book: Book, seq: int, kept: int) -> bool:
    """Whether arithmetic tells what the update did."""
    sequences, _, new, _ = update.new_keys.shape
    whole = book.rows + new
    fits = not book.held or len(book.held) == sequences
    same_rows = seq == whole or (update.window is not None and seq < whole)
    return update.known and update.continuous and fits and same_rows and kept <= whole


def places_of(
    update: CacheUpdate, forward: Forward, positions: Positions, book: Book
) -> Sequence[Sequence[int]]:
    """Positions of the new rows, [sequences][new]."""
    sequences, _, new, _ = update.new_keys.shape
    if update.part == "self" and new == forward.new and sequences == len(positions):
        return positions
    start = 0 if update.part == "cross" else book.rows
    return (tuple(range(start, start + new)),) * sequences


def following(places: Sequence[int], rows: int) -> range:
    """Positions that rows behind the new ones would have."""
    start = places[-1] + 1 if places else 0
    return range(start, start + rows)


def sizes_of(update: CacheUpdate) -> tuple[int, int]:
    """(rows handed to the attention, rows kept): written ones only."""
    seq = update.keys.shape[2]
    kept = seq if update.held_keys is None else update.held_keys.shape[2]
    if update.capacity is not None:
        seq, kept = min(seq, update.length), min(kept, update.length)
    if "Quantized" in update.class_name:
        kept = seq
    return seq, kept


def new_rows(update: CacheUpdate) -> tuple[Tensor, Tensor]:
    """The rows an update wrote, as they were handed back."""
    if update.new_keys.dtype == update.keys.dtype:
        return update.new_keys, update.new_values
    new = update.new_keys.shape[2]
    return update.keys[:, :, -new:], update.values[:, :, -new:]
