"""The cache objects a watcher has met, and whether what they hold is what they held.

Somebody who changes rows behind a cache's back changes the identity or the version of its
tensors; that is looked at when a forward first updates the cache. Knows no cells.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.caches.held import Held, held, layer_of, length, set_back
from kvtrace.record.capture.caches.outlived import Outlived
from kvtrace.record.capture.forward import CacheChange, CacheUpdate, Lingering
from kvtrace.record.capture.running import Verdict

Found = Mapping[int, Verdict]

_UNTOUCHED: Verdict = (True, None)

Grown = tuple[Tensor, Tensor, int, int]
"""Keys and values of a layer that grew as layers do, and their versions."""


def _as_grown(layers: Sequence[Any], grown: Sequence[Grown]) -> bool:
    """Whether all layers of a cache still hold the same tensors, unchanged."""
    if len(layers) != len(grown):
        return False
    for layer, (keys, values, key_version, value_version) in zip(layers, grown, strict=True):
        # somebody may have put another kind of layer there
        if getattr(layer, "keys", None) is not keys or layer.values is not values:
            return False
        if keys._version != key_version or values._version != value_version:
            return False
    return True


class CacheTracker:
    """The cache objects one watcher has met, and what their layers held last."""

    __slots__ = (
        "__weakref__",
        "_grown",
        "_layers",
        "_serials",
        "changes",
        "num_caches",
        "outlived",
    )

    def __init__(self) -> None:
        self.num_caches = 0
        self.changes: list[CacheChange] = []
        self._serials: dict[int, int] = {}
        self._layers: dict[int, dict[int, Held]] = {}
        self._grown: dict[int, Sequence[Grown]] = {}
        self.outlived = Outlived()

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
                    tracker._forget(key)

            weakref.finalize(cache, forget, None).atexit = False
        return found

    def _forget(self, key: int) -> None:
        """A cache died. Its rows may live on with somebody who makes a new cache of them."""
        serial, held = self._serials.pop(key), self._held(key)
        del self._layers[key]
        rows = {
            index: (one.keys, one.values, one.key_version, one.value_version)
            for index, one in held.items()
        }
        self.outlived.add(serial, rows)

    def met(self, cache: object) -> bool:
        """Whether it was ever updated in a watched forward."""
        return id(cache) in self._serials

    def judge(self, cache: Any) -> dict[int, Verdict]:
        """Whether each layer is as it was left; called before a forward's first update of it.

        What was remembered is let go, so that memory of old rows is free during the forward.
        """
        self.serial(cache)
        grown = self._grown.get(id(cache))
        if grown is not None and _as_grown(getattr(cache, "layers", ()), grown):
            del self._grown[id(cache)]
            return dict.fromkeys(range(len(grown)), _UNTOUCHED)
        left = self._held(id(cache))
        self._layers[id(cache)] = {}
        verdicts: dict[int, Verdict] = {}
        for index, layer in enumerate(getattr(cache, "layers", ())):
            last = left.get(index)
            if last is None:
                verdicts[index] = (not _filled(layer), None)
            elif last.untouched(layer):
                verdicts[index] = _UNTOUCHED
            else:
                verdicts[index] = (False, last.out if last.intact() else None)
        change = set_back(self.serial(cache), getattr(cache, "layers", ()), left)
        if change is not None:
            self.changes.append(change)
        return verdicts

    def note(self, cache: Any, updated: Mapping[int, tuple[Tensor, Tensor]], found: Found) -> None:
        """Remember what each layer holds, after a forward.

        Args:
            cache: It.
            updated: Layers that were updated, with what was handed back last.
            found: What `judge` said of the others.
        """
        layers = self._layers[id(cache)]
        for index, layer in enumerate(getattr(cache, "layers", ())):
            out = updated.get(index)
            fine = out is not None or found.get(index, (False, None))[0]
            if fine and hasattr(layer, "keys"):
                layers[index] = held(layer, out)

    def note_grown(self, cache: Any, outs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The same, where all layers of a cache hold what they handed back.

        Args:
            cache: It.
            outs: Keys and values handed back by each of its layers.
        """
        try:
            grown = [(keys, values, keys._version, values._version) for keys, values in outs]
        except RuntimeError:  # inference tensors do not count their changes
            self.note(cache, dict(enumerate(outs)), {})
        else:
            self._grown[id(cache)] = grown

    def _held(self, key: int) -> dict[int, Held]:
        """What each layer of a cache held, by the cache's id."""
        layers = self._layers.get(key, {})
        for index, (keys, values, *versions) in enumerate(self._grown.pop(key, ())):
            key_version, value_version = versions
            layers[index] = Held(keys, values, key_version, value_version, (keys, values))
        return layers

    def refresh(self, cache: Any, untouched: dict[int, bool]) -> None:
        """Called after a change that is understood: take note of what the layers hold now."""
        layers = self._held(id(cache))
        for index, fine in untouched.items():
            layer = layer_of(cache, index)
            if fine and layer is not None:
                layers[index] = held(layer, None)
            else:
                layers.pop(index, None)

    def untouched(self, cache: Any) -> dict[int, bool]:
        """Per layer met: whether it still holds what it held."""
        layers = self._held(id(cache))
        return {
            index: (layer := layer_of(cache, index)) is not None and last.untouched(layer)
            for index, last in layers.items()
        }

    def take_changes(self, caches: Set[int]) -> tuple[CacheChange, ...]:
        """Changes of these caches; those of others wait until a forward uses them."""
        if not self.changes:
            return ()
        waiting = (set(self._serials.values()) | self.outlived.serials()) - caches
        mine = tuple(one for one in self.changes if one.cache in caches)
        self.changes = [one for one in self.changes if one.cache in waiting]
        return mine

    def pending(self, caches: Set[int]) -> tuple[CacheChange, ...]:
        """Changes of these caches that no forward used yet, and that go on waiting."""
        return tuple(one for one in self.changes if one.cache in caches)

    def beyond(self, updated: Set[tuple[int, int]]) -> bool:
        """Whether a cache holds layers besides those of it that were updated.

        Args:
            updated: (serial, layer).
        """
        serials = {serial for serial, _ in updated}
        return any(
            serial in serials and (serial, layer) not in updated
            for key, serial in list(self._serials.items())
            for layer in self._layers.get(key, ())
        )

    def live(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(serial, layer, keys, values) of everything held.

        Meanwhile any cache may die, as the garbage collector runs when it likes.
        """
        for key in list(self._layers):
            serial = self._serials.get(key)
            if serial is None:
                continue
            for index, last in self._held(key).items():
                if isinstance(last.keys, Tensor) and last.keys.dim() == 4 and last.intact():
                    yield serial, index, last.keys, last.values


def lingering(
    tracker: CacheTracker,
    calls: Sequence[AttentionCall],
    updates: Sequence[CacheUpdate],
    cross: object,
) -> tuple[Lingering, ...]:
    """What else is in the caches, if a call read something that no update handed back.

    Or where a cache that was updated has layers that were not, as models that skip some leave it.

    Args:
        tracker: Knows them.
        calls: Of a forward.
        updates: Of it.
        cross: The second half of the cache that it was given, if that is an encoder-decoder's.
    """
    handed = {update.keys.data_ptr() for update in updates}
    updated = {(update.cache, update.layer) for update in updates}
    if all(call.keys.data_ptr() in handed for call in calls) and not tracker.beyond(updated):
        return ()
    half = None if cross is None else tracker.serial(cross)
    return tuple(
        Lingering(serial, layer, keys, values, serial == half)
        for serial, layer, keys, values in tracker.live()
        if (serial, layer) not in updated
    )


def _filled(layer: Any) -> bool:
    keys = getattr(layer, "keys", None)
    return isinstance(keys, Tensor) and keys.numel() > 0 and length(layer) > 0
