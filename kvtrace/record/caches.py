"""What happens to caches: updates, and the changes between forwards.

`Cache.update` is given exactly the new rows and hands back exactly what is visible. The mutators
are called between forwards. Both are replaced class-wide while held, also in subclasses that have
their own. Whether somebody changed the rows behind the cache's back is seen by identity and
version of the tensors it holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from kvtrace.record.forward import CacheChange, CacheUpdate, Recurrent
from kvtrace.record.patch import Make, Method, Patches
from kvtrace.record.running import passes

KINDS = {
    "crop": "crop",
    "reorder_cache": "reorder",
    "batch_repeat_interleave": "repeat",
    "batch_select_indices": "select",
    "reset": "reset",
}


@dataclass(slots=True)
class RawUpdate:
    """An update as the patch saw it."""

    cache: Any
    index: int
    layer: Any
    new: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    held: tuple[Any, Any]
    continuous: bool
    earlier: tuple[Tensor, Tensor] | None


@dataclass(slots=True)
class Held:
    """What a cache layer held when it was last seen."""

    keys: Any
    values: Any
    key_version: int
    value_version: int
    out: tuple[Tensor, Tensor] | None

    def untouched(self, layer: Any) -> bool:
        """Whether the layer still holds the same tensors, unchanged."""
        return (
            getattr(layer, "keys", None) is self.keys
            and getattr(layer, "values", None) is self.values
            and self.intact()
        )

    def intact(self) -> bool:
        """Whether its tensors still hold what they held, wherever they are now."""
        return (
            _version(self.keys) == self.key_version and _version(self.values) == self.value_version
        )


def _version(tensor: object) -> int:
    """Counts changes in place; inference tensors don't count, and say -1."""
    try:
        return int(tensor._version)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        return -1


def held(layer: Any, out: tuple[Tensor, Tensor] | None) -> Held:
    """What it holds now."""
    keys, values = layer.keys, layer.values
    return Held(keys, values, _version(keys), _version(values), out)


class CacheTracker:
    """The cache objects one watcher has met, and what their layers held last."""

    __slots__ = ("__weakref__", "_layers", "_serials", "changes", "num_caches")

    def __init__(self) -> None:
        self.num_caches = 0
        self.changes: list[CacheChange] = []
        self._serials: dict[int, int] = {}
        self._layers: dict[int, dict[int, Held]] = {}

    def serial(self, cache: Any) -> int:
        """Number of a cache object; it is forgotten when the object dies."""
        key = id(cache)
        found = self._serials.get(key)
        if found is None:
            found = self._serials[key] = self.num_caches
            self.num_caches += 1
            self._layers[key] = {}
            mine = weakref.ref(self)

            def forget(_: object) -> None:
                tracker = mine()
                if tracker is not None:
                    tracker._serials.pop(key, None)
                    tracker._layers.pop(key, None)

            weakref.finalize(cache, forget, None).atexit = False
        return found

    def met(self, cache: object) -> bool:
        """Whether it was ever updated in a watched forward."""
        return id(cache) in self._serials

    def before(self, cache: Any, index: int) -> tuple[bool, tuple[Tensor, Tensor] | None]:
        """Called before an update: (untouched, what was handed back last time if not)."""
        last = self._layers.get(id(cache), {}).get(index)
        layer = _layer(cache, index)
        if last is None:
            return layer is None or not _filled(layer), None
        if last.untouched(layer):
            return True, None
        return False, last.out if last.intact() else None

    def after(self, cache: Any, index: int, layer: Any, out: tuple[Tensor, Tensor]) -> None:
        """Called after an update."""
        self.serial(cache)
        if hasattr(layer, "keys"):
            self._layers[id(cache)][index] = held(layer, out)

    def refresh(self, cache: Any, untouched: dict[int, bool]) -> None:
        """Called after a change that is understood: take note of what the layers hold now."""
        layers = self._layers.get(id(cache), {})
        for index, fine in untouched.items():
            layer = _layer(cache, index)
            if fine and layer is not None:
                layers[index] = held(layer, None)
            else:
                layers.pop(index, None)

    def untouched(self, cache: Any) -> dict[int, bool]:
        """Per layer met: whether it still holds what it held."""
        layers = self._layers.get(id(cache), {})
        return {
            index: (layer := _layer(cache, index)) is not None and last.untouched(layer)
            for index, last in layers.items()
        }

    def live(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(serial, layer, keys, values) of everything held."""
        for key, layers in self._layers.items():
            for index, last in layers.items():
                if isinstance(last.keys, Tensor) and last.keys.dim() == 4 and last.intact():
                    yield self._serials[key], index, last.keys, last.values


def _layer(cache: Any, index: int) -> Any:
    layers = getattr(cache, "layers", ())
    return layers[index] if index < len(layers) else None


def _filled(layer: Any) -> bool:
    keys = getattr(layer, "keys", None)
    return isinstance(keys, Tensor) and keys.numel() > 0 and length(layer) > 0


def length(layer: Any) -> int:
    """Rows a layer has seen."""
    ask = getattr(layer, "get_seq_length", None)
    return int(ask()) if ask is not None else 0


def rows_held(layer: Any) -> int:
    """Rows a layer holds: what it has seen, at most what its tensor has room for."""
    keys = getattr(layer, "keys", None)
    seen = length(layer)
    if isinstance(keys, Tensor) and keys.dim() == 4:
        return min(seen, keys.shape[2])
    return seen


def finished(raw: RawUpdate, serial: int, part: str) -> CacheUpdate:
    """The update as the rest of `record` knows it."""
    layer = raw.layer
    keys, values = raw.held
    filled = isinstance(keys, Tensor) and keys.dim() == 4
    capacity = getattr(layer, "max_cache_len", None)
    window = None
    if getattr(layer, "is_sliding", False):
        window = getattr(layer, "sliding_window", capacity)
    return CacheUpdate(
        serial,
        raw.index,
        part,
        type(layer).__name__,
        *raw.new,
        *raw.out,
        keys if filled else None,
        values if filled else None,
        length(layer) if layer is not None else raw.out[0].shape[2],
        capacity if isinstance(capacity, int) else None,
        window if isinstance(window, int) else None,
        raw.continuous,
        _is_known(type(raw.cache)) and _is_known(type(layer)),
        raw.earlier,
    )


def _is_known(kind: type) -> bool:
    found = _known.get(kind)
    if found is None:
        ours = kind.__module__.startswith("transformers.")
        found = _known[kind] = ours and "Quantized" not in kind.__name__
    return found


_known: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


# -- patches -------------------------------------------------------------------------------


def _update(original: Method) -> Method:
    def update(self: Any, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        running = passes()
        if not running or running[-1].depth:
            return original(self, key_states, value_states, *args, **kwargs)
        start = perf_counter_ns()
        index = args[0] if args else kwargs.get("layer_idx", 0)
        seen = [(one, *one.tracker.before(self, index)) for one in running]
        running[-1].depth += 1
        middle = perf_counter_ns()
        try:
            out = original(self, key_states, value_states, *args, **kwargs)
        finally:
            running[-1].depth -= 1
        after = perf_counter_ns()
        layer = _layer(self, index)
        kept = getattr(layer, "keys", None), getattr(layer, "values", None)
        given = key_states, value_states
        for one, fine, earlier in seen:
            one.updates.append(RawUpdate(self, index, layer, given, out, kept, fine, earlier))
            one.tracker.after(self, index, layer, out)
        running[-1].own_ns += perf_counter_ns() - after + middle - start
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
            mine = [one for one in _trackers if one.met(self)]
            if not mine or _busy.get(id(self)):
                return original(self, *args, **kwargs)
            layers = range(len(self.layers))
            before = tuple(rows_held(self.layers[index]) for index in layers)
            seen = [length(self.layers[index]) for index in layers]
            fine = [one.untouched(self) for one in mine]
            _busy[id(self)] = True
            try:
                result = original(self, *args, **kwargs)
            finally:
                del _busy[id(self)]
            after = tuple(rows_held(self.layers[index]) for index in layers)
            removed = tuple(
                max(0, old - length(self.layers[index]))
                for index, old in zip(layers, seen, strict=True)
            )
            given = args[0] if args else next(iter(kwargs.values()), None)
            order = _order(KINDS[name], given)
            for one, untouched in zip(mine, fine, strict=True):
                one.refresh(self, untouched)
                one.changes.append(
                    CacheChange(
                        one.serial(self), KINDS[name], tuple(layers), before, after, removed, order
                    )
                )
            return result

        return mutate

    return make


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


def _recurrent(original: Method) -> Method:
    def update_recurrent(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        running = passes()
        if running:
            start = perf_counter_ns()
            index = args[1] if len(args) > 1 else kwargs.get("layer_idx", 0)
            nbytes = _recurrent_bytes(_layer(self, index))
            for one in running:
                one.recurrent.append(Recurrent(one.tracker.serial(self), index, nbytes))
            running[-1].own_ns += perf_counter_ns() - start
        return result

    return update_recurrent


def _recurrent_bytes(layer: Any) -> int:
    total = 0
    for name in ("conv_states", "recurrent_states"):
        parts = getattr(layer, name, None)
        found = list(parts.values()) if isinstance(parts, dict) else [parts]
        total += sum(part.nbytes for part in found if isinstance(part, Tensor))
    return total


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
    "update_conv_state": _recurrent,
    "update_recurrent_state": _recurrent,
    **{name: _mutator(name) for name in KINDS},
}


def _install(patches: Patches) -> None:
    for owner in _classes(Cache):
        if not issubclass(owner, EncoderDecoderCache):
            patch_class(patches, owner)


CACHES = Patches(_install)
"""The caches' patches; held by every watcher."""
