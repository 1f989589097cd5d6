"""Bytes of the cache: read and written by a step, and held after it."""

from __future__ import annotations

from collections.abc import Sequence, Set

from kvtrace.record.cache.runs import count
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.forward import Forward
from kvtrace.trace import CacheStep


def step_bytes(groups: Sequence[CacheStep], stores: Stores) -> tuple[int, int]:
    """(read, written): rows attended to that earlier steps wrote, and rows written.

    Rows that several layers share count once; rows that are in no cache do not count.
    """
    read = written = 0
    for group in groups:
        attended = sum(count(runs) for runs in group.attended)
        fresh = group.rows * len(group.attended)
        row = stores.row_bytes(group.layers)
        read += max(0, attended - fresh) * row
        written += fresh * row
    return read, written


def held_bytes(forward: Forward, caches: Set[int]) -> int:
    """Memory of everything the caches of a forward hold after it: the live tensors' bytes.

    Args:
        forward: It.
        caches: Those that it updated or read; others are somebody else's.
    """
    if not (forward.lingering or forward.recurrent):
        return forward.cache_bytes
    parts = {
        (part.data_ptr(), part.nbytes): part.nbytes
        for one in forward.lingering
        if one.cache in caches or one.given
        for part in (one.keys, one.values)
    }
    left = sum(parts.values())
    memory = {(one.cache, one.layer): one.nbytes for one in forward.recurrent}
    return forward.cache_bytes + left + sum(memory.values())
