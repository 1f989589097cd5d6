"""Follows the requests of engines through packed forwards, for one watcher.

A request is told from another by the engine's name for it and by where it goes on: one that was
thrown out and begins again is a new sequence. Knows no steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.running import Followed, Pass, RawCall
from kvtrace.record.paged.batch import Batch, batch, is_packed
from kvtrace.record.paged.engine import Listener, PagedUpdate, Request, listen
from kvtrace.record.paged.places import Slots
from kvtrace.record.paged.split import Packed, parts

MAX_REQUESTS = 4096
"""Requests that are remembered; older ones are new ones if they come back."""


class _Stream:
    """What stands for the cache of one request."""

    __slots__ = ("__weakref__", "length", "state")

    def __init__(self) -> None:
        self.length = 0
        self.state: Callable[[], object] = _nothing


def _nothing() -> None:
    """Where nobody is referred to."""


@dataclass(slots=True)
class _Pool:
    """What is known of one pool between forwards.

    Attributes:
        cache: Refers to the engine's object, without keeping it.
        number: Counted from 0.
        streams: Request to what stands for its cache.
        copied: Group to slots copied since the last forward.
        version: Changes of its memory, as they were counted after the last forward.
    """

    cache: Callable[[], Any]
    number: int
    streams: dict[str, _Stream] = field(default_factory=dict)
    copied: dict[int, list[tuple[Slots, Slots]]] = field(default_factory=dict)
    version: int | None = None


class Follower:
    """The requests that one watcher has met."""

    def __init__(self, tracker: CacheTracker, on_chosen: Callable[[int, int], None]) -> None:
        """Nothing is listened to yet.

        Args:
            tracker: Numbers caches.
            on_chosen: Told of a token chosen for a request: (number of its cache, token).
        """
        self._missed = 0
        self._tracker = tracker
        self._on_chosen = on_chosen
        self._pools: dict[int, _Pool] = {}
        self._forwards = 0

    def listen(self) -> Callable[[], None]:
        """Begin; returns how to stop."""
        return listen(Listener(self._copied, self._chosen))

    @property
    def says(self) -> tuple[str, ...]:
        """Sentences: what was left out."""
        if not self._missed:
            return ()
        count = "1 forward was" if self._missed == 1 else f"{self._missed} forwards were"
        return (
            f"continuous batching: {count} not recorded, or not whole: which rows are whose, and "
            "where they lie, was not seen",
        )

    # -- what the engine says ----------------------------------------------------------------

    def _chosen(self, state: object, token: int) -> None:
        for pool in self._pools.values():
            for stream in pool.streams.values():
                if stream.state() is state:
                    self._on_chosen(self._tracker.serial(stream), token)
                    return

    def _copied(self, allocator: Any, source: Sequence[int], dest: Sequence[int]) -> None:
        for pool in self._pools.values():
            groups = getattr(pool.cache(), "layer_to_allocator", {}).values()
            if any(one is allocator for one in groups):
                block = int(allocator.tokens_per_page)
                pairs = (_all_slots(source, block), _all_slots(dest, block))
                pool.copied.setdefault(int(allocator.index), []).append(pairs)
                pool.version = _version(pool.cache())

    # -- forwards ----------------------------------------------------------------------------

    def begin(self, one: Pass, arguments: Mapping[str, object]) -> None:
        """A forward is about to run: if it is packed, its pass is told so."""
        if not is_packed(arguments):
            return
        found = batch(arguments)
        if found is None:
            self._missed += 1
        elif not found.warms_up:
            one.packed = self._packed(found)

    def _packed(self, found: Batch) -> Packed:
        pool = self._pool(found.pool)
        now = _version(found.pool)
        foreign = pool.version is not None and now is not None and now != pool.version
        copied = {group: tuple(pairs) for group, pairs in pool.copied.items()}
        pool.copied.clear()
        serials = [self._stream(pool, found, place) for place in range(len(found.requests))]
        groups = {one.number for one in found.groups.values()}
        return Packed(
            found,
            tuple(serials),
            pool.number,
            self._forwards,
            copied,
            frozenset(groups if foreign else ()),
            {},
        )

    def fed(self, one: Pass) -> dict[int, int]:
        """The first token of each request now, by the number of its cache."""
        packed = one.packed
        if packed is None:
            return {}
        first = [packed.batch.tokens[start] for start in packed.batch.starts[:-1]]
        return dict(zip(packed.serials, first, strict=True))

    def see(self, one: Pass) -> None:
        """A forward is over: its calls are given what the pool handed back, not the new rows."""
        if one.packed is None:
            return
        updates: dict[int, PagedUpdate] = {}
        calls: list[Any] = []
        by_keys = {id(update.new_keys): update for update in one.paged}
        for raw in one.calls:
            update = None if isinstance(raw, Followed) else by_keys.get(id(_key(raw)))
            if isinstance(raw, Followed) or update is None:
                calls.append(raw)
                continue
            calls.append(_given(raw, update))
            updates[id(update.keys)] = update
        one.calls[:] = calls
        one.packed = replace(one.packed, updates=updates)

    def parts(self, forward: Forward, one: Pass) -> list[Forward]:
        """A forward that is not packed, or those of its requests, as far as they are known."""
        packed = one.packed
        if packed is None:
            return [] if is_packed(forward.arguments) else [forward]
        pool = self._pool(packed.batch.pool)
        pool.version = _version(packed.batch.pool)
        kept = tuple(call for call in forward.calls if id(call.keys) in packed.updates)
        if len(kept) < len(forward.calls) or not kept:
            self._missed += 1
        if not kept:
            return []
        self._forwards += 1
        numbers = iter(range(forward.number, forward.number + len(packed.serials)))
        return parts(replace(forward, calls=kept), packed, lambda: next(numbers))

    def _pool(self, cache: Any) -> _Pool:
        found = self._pools.get(id(cache))
        if found is None or found.cache() is not cache:
            self._pools = {k: one for k, one in self._pools.items() if one.cache() is not None}
            found = _Pool(weakref.ref(cache), self._tracker.serial(cache))
            self._pools[id(cache)] = found
        return found

    def _stream(self, pool: _Pool, found: Batch, place: int) -> int:
        """The number of the cache that a request stands for; a new one where it begins."""
        request: Request = found.requests[place]
        start = found.positions[found.starts[place]]
        stream = pool.streams.pop(request.name, None)
        if stream is None or stream.length != start:
            stream = _Stream()
        pool.streams[request.name] = stream
        stream.length, stream.state = start + request.new, weakref.ref(request.state)
        while len(pool.streams) > MAX_REQUESTS:
            del pool.streams[next(iter(pool.streams))]
        return self._tracker.serial(stream)


def _version(cache: Any) -> int | None:
    """How often the memory of a pool was changed; None where that is not counted."""
    memory = getattr(cache, "cache_tensor", None)
    try:
        return int(memory._version) if isinstance(memory, Tensor) else None
    except RuntimeError:
        return None


def _all_slots(blocks: Sequence[int], size: int) -> Slots:
    """All slots of some blocks."""
    found: Slots = (
        np.array(blocks, np.int64)[:, None] * size + np.arange(size, dtype=np.int64)
    ).reshape(-1)
    return found


def _key(raw: RawCall) -> object:
    """The keys that an attention function was given."""
    args, kwargs = raw[0], raw[1]
    return args[2] if len(args) > 2 else kwargs.get("key")


def _given(raw: RawCall, update: PagedUpdate) -> RawCall:
    """The call as if it had been given all rows it attended to."""
    args, kwargs, result, eager, before = raw
    names = ("module", "query", "key", "value", "attention_mask")
    told = dict(zip(names, args, strict=False))
    told = {name: told.get(name, kwargs.get(name)) for name in names}
    told["key"], told["value"] = update.keys, update.values
    rest = {name: value for name, value in kwargs.items() if name not in names}
    return tuple(told.values()), {**rest, "is_causal": False}, result, eager, before
