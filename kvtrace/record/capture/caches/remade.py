"""Caches that were made of another's rows, some of them left out, moved or changed.

Whoever evicts or quantises rows by hand makes a new cache of what is left, as often as not. Most of
its rows, head by head, are another cache's then, or all of them point where that one's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from kvtrace.record.capture.forward import CacheUpdate, Remade
from kvtrace.record.match import digests, nearly

Live = tuple[int, Tensor, Tensor]
"""A cache, and what its layer holds."""


def remade(
    met: Sequence[tuple[int, CacheUpdate, int]], live: Mapping[int, Sequence[Live]]
) -> tuple[Remade, ...]:
    """Whose rows caches that were met with rows in them are made of.

    The last layer tells: in the first one, rows of the same token in the same place are equal
    whatever their texts are.

    Args:
        met: Place among the updates, the update, and its rows before the new ones; in the order of
            layers.
        live: Layer to what is known of it.
    """
    last = {update.cache: (update, rows) for _, update, rows in met}
    origins = {
        cache: _origin(update, rows, live.get(update.layer, ()))
        for cache, (update, rows) in last.items()
    }
    out = []
    for index, update, rows in met:
        origin = origins[update.cache]
        there = () if origin is None else live.get(update.layer, ())
        for cache, keys, values in there:
            if origin is not None and cache == origin[0] and max(origin[1]) < keys.shape[0]:
                out.append(Remade(index, cache, rows, origin[1], keys, values))
    return tuple(out)


def _origin(
    update: CacheUpdate, rows: int, live: Sequence[Live]
) -> tuple[int, tuple[int, ...]] | None:
    """The cache, and the sequence of it that each of this one is made of; None: of none known."""
    mine = update.keys[:, :, :rows], update.values[:, :, :rows]
    best, most = None, mine[0].shape[0] * mine[0].shape[1] * rows / 2
    for cache, *theirs in reversed(live):
        if _alike(mine, theirs):
            order, shared = _shared(_by_head(*mine), _by_head(*theirs))
            if shared > most:
                best, most = (cache, order), shared
    if best is None and update.window is not None:
        best = _newest_of(mine, live)
    if best is not None:
        return best
    for cache, keys, values in reversed(live):
        same = _alike(mine, (keys, values)) and keys.shape == mine[0].shape
        if same and nearly(mine[0], keys) and nearly(mine[1], values):
            return cache, tuple(range(keys.shape[0]))
    return None


def _newest_of(mine: Sequence[Tensor], live: Sequence[Live]) -> tuple[int, tuple[int, ...]] | None:
    """The cache that has the newest row of each sequence: older ones have left its window since."""
    numbers = [line[0] for line in digests(*(one[:, :, -1:] for one in mine))]
    for cache, *theirs in reversed(live):
        if _alike(mine, theirs):
            lines = [set(line) for line in digests(*theirs)]
            order = [next((b for b, one in enumerate(lines) if n in one), None) for n in numbers]
            if None not in order:
                return cache, tuple(one for one in order if one is not None)
    return None


def _alike(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether rows of one can be those of the other."""
    return all(
        one.dtype == other.dtype
        and one.device == other.device
        and one.shape[1] == other.shape[1]
        and one.shape[3] == other.shape[3]
        for one, other in zip(mine, theirs, strict=True)
    )


def _by_head(keys: Tensor, values: Tensor) -> list[list[set[int]]]:
    """Digests of the rows of every head, [sequences][kv_heads]."""
    heads = keys.shape[1]
    numbers = digests(keys.flatten(0, 1)[:, None], values.flatten(0, 1)[:, None])
    sets = [set(line) for line in numbers]
    return [sets[start : start + heads] for start in range(0, len(sets), heads)]


def _shared(
    mine: Sequence[Sequence[set[int]]], theirs: Sequence[Sequence[set[int]]]
) -> tuple[tuple[int, ...], int]:
    """The sequence that has most rows of each of these, and how many all of them share."""
    order, total = [], 0
    for b, one in enumerate(mine):
        counts = [sum(len(x & y) for x, y in zip(one, other, strict=True)) for other in theirs]
        near = b < len(counts) and counts[b] == max(counts)
        order.append(b if near else int(np.argmax(counts)))
        total += max(counts)
    return tuple(order), total
