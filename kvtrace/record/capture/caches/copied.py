"""Caches that begin with the rows of others: a prefix that was copied, repeated, joined, made anew.

A cache that is met with rows in it is held, bit by bit, against those that are known. Where caches
of several prompts were joined to a batch, shorter ones have padding before their rows, or behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from torch import Tensor

from kvtrace.record.capture.caches.remade import Live, remade
from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.forward import CacheUpdate, CopyOf, Piece, Remade
from kvtrace.record.match import same

Rows = tuple[Tensor, Tensor]


def copies(tracker: CacheTracker, updates: Sequence[CacheUpdate]) -> tuple[CopyOf | Remade, ...]:
    """Which updates went to a cache that was met with another's rows in it."""
    met = [(index, one) for index, one in enumerate(updates) if _is_met_filled(one)]
    if not met:
        return ()
    now = {one.cache for one in updates}
    live: dict[int, list[Live]] = {}
    for cache, layer, keys, values in chain(tracker.live(), tracker.outlived.live()):
        if cache not in now:
            live.setdefault(layer, []).append((cache, keys, values))
    for update in updates:
        if update.earlier is not None:
            live.setdefault(update.layer, []).append((update.cache, *update.earlier))
    tried = [(index, _copy_of(index, one, live.get(one.layer, ()))) for index, one in met]
    found = {index: one for index, one in tried if one is not None}
    others = [(i, one, _before(one)) for i, one in met if one.known and i not in found]
    return (*found.values(), *(remade(others, live) if others else ()))


def _is_met_filled(update: CacheUpdate) -> bool:
    """Whether rows came with a cache: it is new, or of other sequences than it was."""
    earlier = update.earlier
    fresh = not update.continuous and (
        earlier is None or earlier[0].shape[0] != update.keys.shape[0]
    )
    return fresh and update.placed is None and _before(update) > 0


def _before(update: CacheUpdate) -> int:
    """Rows that were there before."""
    seq = update.keys.shape[2]
    seq = seq if update.capacity is None else min(seq, update.length)
    return seq - update.new_keys.shape[2]


def _copy_of(index: int, update: CacheUpdate, live: Sequence[Live]) -> CopyOf | None:
    rows = _before(update)
    for cache, keys, values in live:
        count, there = update.keys.shape[0], keys.shape[0]
        chosen: Sequence[int] | None = [b * there // count for b in range(count)]
        if not (_equal(update.keys, keys, rows) and _equal(update.values, values, rows)):
            chosen = _chosen((update.keys, update.values), (keys, values), rows)
        if chosen is not None:
            return CopyOf(index, rows, tuple(Piece(cache, one, 0, rows) for one in chosen))
    pieces: list[Piece] = []
    for keys, values in zip(update.keys, update.values, strict=True):
        mine = keys[:, :rows], values[:, :rows]
        found = next(_pieces(mine, live), None)
        if found is None:
            return None
        pieces.append(found)
    return CopyOf(index, rows, tuple(pieces))


def _equal(mine: Tensor, theirs: Tensor, rows: int) -> bool:
    """Whether the first rows are the same, each sequence as often as it takes."""
    if theirs.shape[2] < rows or theirs.device != mine.device or mine.shape[0] % theirs.shape[0]:
        return False
    times = mine.shape[0] // theirs.shape[0]
    first = theirs[:, :, :rows]
    return same(mine[:, :, :rows], first if times == 1 else first.repeat_interleave(times, 0))


def _chosen(mine: Rows, theirs: Rows, rows: int) -> Sequence[int] | None:
    """The sequence of another cache that each of this one is; None: some is none of them.

    Those that are kept of a batch, or exchanged, as whoever searches does by hand.
    """
    there = theirs[0].shape[0]
    if there < 2 or theirs[0].shape[2] < rows or theirs[0].device != mine[0].device:
        return None
    found: list[int] = []
    for b in range(mine[0].shape[0]):
        near = [*found[-1:], b] if b < there else found[-1:]  # most likely ones first
        fits = (
            s
            for s in dict.fromkeys((*near, *range(there)))
            if all(same(x[b, :, :rows], y[s, :, :rows]) for x, y in zip(mine, theirs, strict=True))
        )
        source = next(fits, None)
        if source is None:
            return None
        found.append(source)
    return found


def _pieces(mine: Rows, live: Sequence[Live]) -> Iterator[Piece]:
    """Sequences of caches whose rows are those of one sequence, or all of them are among them.

    Args:
        mine: Its keys and values before the forward, [kv_heads, rows, dim].
        live: Caches with their keys and values, [sequences, kv_heads, rows, dim].
    """
    rows = mine[0].shape[1]
    longest = sorted(live, key=lambda one: -min(rows, one[1].shape[2]))
    for cache, keys, values in longest:
        if keys.device != mine[0].device:
            continue
        count = min(rows, keys.shape[2])
        for first in dict.fromkeys((rows - count, 0)):
            here = [one[:, first : first + count] for one in mine]
            for sequence in range(keys.shape[0]):
                theirs = keys[sequence, :, :count], values[sequence, :, :count]
                if count and all(map(same, here, theirs)):
                    yield Piece(cache, sequence, first, count)
