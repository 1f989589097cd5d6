"""What happens to caches: updates, and the changes between forwards.

`Cache.update` is given exactly the new rows and hands back exactly what is visible. The mutators
are called between forwards. Both are replaced class-wide while held, also in subclasses that have
their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from torch import Tensor

from kvtrace.record.capture.caches.finished import is_theirs
from kvtrace.record.capture.caches.handing import cache_made
from kvtrace.record.capture.caches.held import layer_of, length, rows_held
from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.forward import CacheChange, CacheUpdate, Recurrent
from kvtrace.record.capture.replaced.patch import Make, Method, Patches
from kvtrace.record.capture.running import passes, threads
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.theirs import CACHE

KINDS = {
    "crop": "crop",
    "reorder_cache": "reorder",
    "batch_repeat_interleave": "repeat",
    "batch_select_indices": "select",
    "reset": "reset",
}

HALVES = ("self_attention_cache", "cross_attention_cache")
"""Of an encoder-decoder cache."""


def _update(original: Method) -> Method:
    def update(self: Any, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        running = threads.passes
        if not running or running[-1].depth:
            return original(self, key_states, value_states, *args, **kwargs)
        index = args[0] if args else kwargs.get("layer_idx", 0)
        inner = running[-1]
        for one in running:
            if id(self) not in one.verdicts:
                start = perf_counter_ns()
                with unseen_by_modes():
                    one.verdicts[id(self)] = one.tracker.judge(self)
                inner.own_ns += perf_counter_ns() - start
        inner.depth = 1
        try:
            out = original(self, key_states, value_states, *args, **kwargs)
        finally:
            inner.depth = 0
        for one in running:
            one.updates.append((self, index, key_states, value_states, out))
        return out

    return update


_trackers: weakref.WeakSet[CacheTracker] = weakref.WeakSet()


def follow(tracker: CacheTracker) -> Callable[[], None]:
    """Tell this tracker of changes of the caches it has met; returns how to stop."""
    _trackers.add(tracker)
    return lambda: _trackers.discard(tracker)


def _mutator(name: str) -> Make:
    def make(original: Method) -> Method:
        def mutate(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else next(iter(kwargs.values()), None)
            layers = getattr(self, "layers", ())
            methods = (original, *(getattr(layer, name, None) for layer in layers))
            with changing(self, KINDS[name], given, known=all(map(is_theirs, methods))):
                return original(self, *args, **kwargs)

        return mutate

    return make


@contextmanager
def changing(cache: Any, kind: str, given: Any, *, known: bool) -> Iterator[None]:
    """Take note of a change of a cache that is made meanwhile.

    Args:
        cache: It.
        kind: Of `CacheChange`.
        given: What says which sequences it takes over, or how many.
        known: Transformers' own code makes it. Else what it really did is told by the rows, when
            they are attended to again.
    """
    mine = [one for one in _trackers if one.met(cache)]
    if not mine or _busy.get(id(cache)):
        yield
        return
    layers = range(len(cache.layers))
    with unseen_by_modes():
        before = tuple(rows_held(cache.layers[index]) for index in layers)
        seen = [length(cache.layers[index]) for index in layers]
        fine = [one.untouched(cache) if known else dict.fromkeys(layers, False) for one in mine]
    _busy[id(cache)] = True
    try:
        yield
    finally:
        del _busy[id(cache)]
    with unseen_by_modes():
        after = tuple(rows_held(cache.layers[index]) for index in layers)
        now = [length(cache.layers[index]) for index in layers]
        removed = tuple(max(0, old - new) for old, new in zip(seen, now, strict=True))
        order = _order(kind, given)
        for one, untouched in zip(mine, fine, strict=True):
            one.refresh(cache, untouched)
            one.changes.append(
                CacheChange(one.serial(cache), kind, tuple(layers), before, after, removed, order)
            )


_busy: dict[int, bool] = {}


def _order(kind: str, given: Any) -> tuple[int, ...]:
    if kind in ("reorder", "select") and given is not None:
        if isinstance(given, Tensor):
            picked = given.nonzero().flatten() if given.dtype.is_floating_point else given
            return tuple(int(i) for i in picked.flatten().tolist())
        return tuple(int(i) for i in given)
    if kind == "repeat" and isinstance(given, int):
        return (given,)
    return ()


def _recurrent(place: int) -> Make:
    """Note which layers' recurrent memory is written, or handed out to be changed in place.

    Args:
        place: Where the layer's number stands among the arguments.
    """

    def make(original: Method) -> Method:
        def use_memory(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            running = passes()
            if running:
                start = perf_counter_ns()
                index = args[place] if len(args) > place else kwargs.get("layer_idx", 0)
                nbytes = _recurrent_bytes(layer_of(self, index))
                for one in running if nbytes else ():
                    one.recurrent.append(Recurrent(one.tracker.serial(self), index, nbytes))
                running[-1].own_ns += perf_counter_ns() - start
            return result

        return use_memory

    return make


def _recurrent_bytes(layer: Any) -> int:
    total = 0
    for name in ("conv_states", "recurrent_states"):
        parts = getattr(layer, name, None)
        found = list(parts.values()) if isinstance(parts, dict) else [parts]
        total += sum(part.nbytes for part in found if isinstance(part, Tensor))
    return total


def beside(
    tracker: CacheTracker,
    arguments: Mapping[str, object],
    result: object,
    updates: Iterable[CacheUpdate],
) -> Iterator[Recurrent]:
    """Memory that no call told of: a model may change a layer's where it lies.

    A cache of a model's own may keep it beside its layers, a tensor for some of them.

    Args:
        tracker: Numbers the caches.
        arguments: Of a forward: its cache is one of them, or in what it gave back.
        result: What it gave back.
        updates: Of that forward: what lists hold for a layer with rows is those rows.
    """
    caches = (*arguments.values(), cache_made(result))
    for cache in {id(one): one for one in caches if CACHE.has(one)}.values():
        for index, layer in enumerate(getattr(cache, "layers", ())):
            if hasattr(layer, "conv_states") and (nbytes := _recurrent_bytes(layer)):
                yield Recurrent(tracker.serial(cache), index, nbytes)
        if type(cache).__module__ == CACHE.module:
            continue
        rows = {(one.cache, one.layer) for one in updates}
        serial, sizes = tracker.serial(cache), dict[int, int]()
        for value in vars(cache).values():
            listed = value.items() if isinstance(value, dict) else _numbered(value)
            for index, one in listed:
                if isinstance(one, Tensor) and one.dim() > 1 and (serial, index) not in rows:
                    sizes[index] = sizes.get(index, 0) + one.nbytes
        yield from (Recurrent(serial, index, nbytes) for index, nbytes in sizes.items() if nbytes)


def _numbered(value: object) -> Iterable[tuple[int, object]]:
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _classes(root: type) -> Iterator[type]:
    yield root
    children: list[type] = root.__subclasses__()
    for child in children:
        yield from _classes(child)


def patch_class(patches: Patches, owner: type) -> None:
    """Replace the methods a cache class has of its own."""
    for name, make in _METHODS.items():
        if name in owner.__dict__:
            patches.replace(owner, name, make)


_METHODS: dict[str, Make] = {
    "update": _update,
    "update_conv_state": _recurrent(1),
    "update_recurrent_state": _recurrent(1),
    "get_conv_state": _recurrent(0),
    "get_recurrent_state": _recurrent(0),
    **{name: _mutator(name) for name in KINDS},
}


def _install(patches: Patches) -> None:
    from transformers.cache_utils import Cache, EncoderDecoderCache

    for owner in _classes(Cache):
        if not issubclass(owner, EncoderDecoderCache):
            patch_class(patches, owner)


CACHES = Patches(_install, needs=CACHE.module)
"""The caches' patches; held by every watcher."""


def cross_half(given: object, result: Any) -> object:
    """The second half of an encoder-decoder cache, whether it was given or made."""
    made = cache_made(result)
    parts = result if isinstance(result, tuple) else ()
    found = (getattr(one, "cross_attention_cache", None) for one in (given, made, *parts))
    return next((one for one in found if one is not None), None)
