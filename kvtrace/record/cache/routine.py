"""Steps that are like the one before: the same layers grew by the same rows and were read alike.

Almost every decode step is. What was found out for one then holds for the next, and only that it
is alike must be looked at, layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from torch import Size

from kvtrace.record.cache.reads import Read
from kvtrace.record.capture.forward import CacheUpdate, Forward
from kvtrace.record.capture.tokens.positions import Positions

if TYPE_CHECKING:
    from kvtrace.record.cache.step import LedgerStep
    from kvtrace.record.capture.alike import Pattern


class Routine(Struct, frozen=True):
    """What the next step must be like.

    Attributes:
        cache: That all updates went to.
        layers: (cache, layer) of each update.
        shapes: Of the keys and values handed in.
        modules: Of each call.
        updates: Which update each call reads.
        stores: Cache layer of each update.
        reads: Of each call.
        read_stores: Cache layer of each call.
        pattern: What `watch` compared such a step with, layer by layer.
    """

    cache: int
    layers: tuple[tuple[int, int], ...]
    shapes: tuple[Size, Size]
    modules: tuple[str, ...]
    updates: tuple[int, ...]
    stores: tuple[int, ...]
    reads: list[Read]
    read_stores: list[int]
    pattern: Pattern | None

    def fits(self, forward: Forward, positions: Positions) -> bool:
        """Whether a forward is like that, but for the number of rows attended to."""
        if forward.changes or forward.recurrent or forward.lingering:
            return False
        if forward.batch is not None and forward.batch.pattern is self.pattern:
            return forward.batch.pattern.sequences == len(positions)
        keys, _ = self.shapes
        return (
            len(forward.updates) == len(self.layers)
            and len(forward.calls) == len(self.modules)
            and keys[0] == len(positions)
            and keys[2] == forward.new
            and self._updates_alike(forward.updates)
            and self._calls_alike(forward)
        )

    def _updates_alike(self, updates: Sequence[CacheUpdate]) -> bool:
        keys, values = self.shapes
        seen = updates[0].keys.shape
        for update, layer in zip(updates, self.layers, strict=True):
            alike = (
                (update.cache, update.layer) == layer
                and update.new_keys.shape == keys
                and update.new_values.shape == values
                and update.keys.shape == seen
                and _grows(update)
            )
            if not alike:
                return False
        return True

    def _calls_alike(self, forward: Forward) -> bool:
        updates = forward.updates
        for call, module, index in zip(forward.calls, self.modules, self.updates, strict=True):
            update = updates[index]
            if call.module != module or call.keys is not update.keys:
                return False
            if call.values is not update.values:
                return False
        return True


def _grows(update: CacheUpdate) -> bool:
    """Whether it is an update that only appends to what was there."""
    return (
        update.continuous
        and update.known
        and update.held_keys is update.keys
        and update.held_values is update.values
        and update.new_keys.dtype == update.keys.dtype
    )


def routine(forward: Forward, entry: LedgerStep, stores: Sequence[int]) -> Routine | None:
    """What a step like this one is like; None if it is none that repeats."""
    updates = forward.updates
    plain = (
        updates
        and len(set(stores)) == len(stores)
        and len(entry.groups) == 1
        and all(read.source == "cache" and read.repeats == 1 for read in entry.reads)
        and all(update.class_name == "DynamicLayer" for update in updates)
        and all(update.part == "self" and _grows(update) for update in updates)
        and len({update.cache for update in updates}) == 1
    )
    found = [read.update for read in entry.reads if read.update is not None]
    if not plain or len(found) != len(entry.reads):
        return None
    return Routine(
        updates[0].cache,
        tuple((update.cache, update.layer) for update in updates),
        (updates[0].new_keys.shape, updates[0].new_values.shape),
        tuple(call.module for call in forward.calls),
        tuple(found),
        tuple(stores),
        entry.reads,
        entry.stores,
        forward.pattern,
    )
