"""Caches that begin with the rows of another: a prefix that was copied, repeated or made anew.

A cache that is met with rows in it is held, bit by bit, against those that are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.forward import CacheUpdate, CopyOf
from kvtrace.record.match import same


def copies(tracker: CacheTracker, updates: Sequence[CacheUpdate]) -> tuple[CopyOf, ...]:
    """Which updates went to a cache that was met with another's rows in it."""
    met = [(index, one) for index, one in enumerate(updates) if _is_met_filled(one)]
    if not met:
        return ()
    live: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    for cache, layer, keys, values in chain(tracker.live(), tracker.outlived.live()):
        live.setdefault(layer, []).append((cache, keys, values))
    found = (_copy_of(index, one, live.get(one.layer, ())) for index, one in met)
    return tuple(one for one in found if one is not None)


def _is_met_filled(update: CacheUpdate) -> bool:
    fresh = not update.continuous and update.earlier is None
    return fresh and update.known and update.placed is None and _before(update) > 0


def _before(update: CacheUpdate) -> int:
    """Rows that were there before."""
    seq = update.keys.shape[2]
    seq = seq if update.capacity is None else min(seq, update.length)
    return seq - update.new_keys.shape[2]


def _copy_of(
    index: int, update: CacheUpdate, live: Sequence[tuple[int, Tensor, Tensor]]
) -> CopyOf | None:
    rows = _before(update)
    for cache, keys, values in live:
        if cache == update.cache:
            continue
        count, there = update.keys.shape[0], keys.shape[0]
        if _equal(update.keys, keys, rows) and _equal(update.values, values, rows):
            return CopyOf(index, cache, rows, tuple(b * there // count for b in range(count)))
        chosen = _chosen((update.keys, update.values), (keys, values), rows)
        if chosen is not None:
            return CopyOf(index, cache, rows, chosen)
    return None


def _equal(mine: Tensor, theirs: Tensor, rows: int) -> bool:
    """Whether the first rows are the same, each sequence as often as it takes."""
    if theirs.shape[2] < rows or theirs.device != mine.device or mine.shape[0] % theirs.shape[0]:
        return False
    times = mine.shape[0] // theirs.shape[0]
    first = theirs[:, :, :rows]
    return same(mine[:, :, :rows], first if times == 1 else first.repeat_interleave(times, 0))


def _chosen(
    mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], rows: int
) -> tuple[int, ...] | None:
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
    return tuple(found)
