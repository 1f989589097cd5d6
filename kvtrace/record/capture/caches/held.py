"""What a cache layer held when it was last seen, and whether that is what it holds now.

Knows no cells, and nothing of what was done to a layer in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvtrace.record.capture.forward import CacheChange
from kvtrace.record.theirs import STATIC_LAYER, STATIC_SLIDING_LAYER
from kvtrace.record.version import version


@dataclass(slots=True)
class Held:
    """What a cache layer held when it was last seen.

    Attributes:
        keys, values: Its tensors.
        key_version, value_version: How often those were changed then.
        out: What it handed back last.
        rows: How many it had seen, if it is a buffer that counts them; else None.
    """

    keys: Any
    values: Any
    key_version: int
    value_version: int
    out: tuple[Tensor, Tensor] | None
    rows: int | None = None

    def untouched(self, layer: Any) -> bool:
        """Whether the layer still holds the same tensors, unchanged."""
        try:
            return (
                layer.keys is self.keys
                and layer.values is self.values
                and self.keys._version == self.key_version
                and self.values._version == self.value_version
            )
        except (AttributeError, RuntimeError):
            return self._same_inference_tensors(layer)

    def _same_inference_tensors(self, layer: Any) -> bool:
        """The same, for tensors that do not count their changes."""
        same = getattr(layer, "keys", None) is self.keys
        return same and getattr(layer, "values", None) is self.values and self.intact()

    def intact(self) -> bool:
        """Whether its tensors still hold what they held, wherever they are now."""
        return version(self.keys) == self.key_version and version(self.values) == self.value_version


def held(layer: Any, out: tuple[Tensor, Tensor] | None) -> Held:
    """What it holds now."""
    keys, values = layer.keys, layer.values
    rows = length(layer) if counts(type(layer)) else None
    try:
        return Held(keys, values, keys._version, values._version, out, rows)
    except (AttributeError, RuntimeError):
        return Held(keys, values, version(keys), version(values), out, rows)


def counts(kind: type) -> bool:
    """Whether rows of such buffers count as far as they say; a class of somebody's may err."""
    return kind in (STATIC_LAYER.there(), STATIC_SLIDING_LAYER.there())


def length(layer: Any) -> int:
    """Rows a layer has seen."""
    ask = getattr(layer, "get_seq_length", None)
    return int(ask()) if ask is not None else 0


def layer_of(cache: Any, index: int) -> Any:
    """A layer of a cache; None if it has none of that number, or only a list of its rows."""
    try:
        layer = cache.layers[index]
    except (AttributeError, LookupError, TypeError):
        return None
    return layer if hasattr(layer, "__dict__") else None


def rows_held(layer: Any) -> int:
    """Rows a layer holds: what it has seen, at most what its tensors have room for.

    Some keep a prompt's rows in a tensor beside the one that moves on.
    """
    keys = getattr(layer, "keys", None)
    seen = length(layer)
    if not isinstance(keys, Tensor) or keys.dim() != 4:
        return seen
    room = 0
    for name, one in vars(layer).items():
        if name.endswith("keys") and isinstance(one, Tensor) and one.dim() == 4:
            alike = one.shape[:2] == keys.shape[:2] and one.shape[3] == keys.shape[3]
            room += one.shape[2] if alike else 0
    return min(seen, room or keys.shape[2])


def set_back(serial: int, layers: Sequence[Any], left: Mapping[int, Held]) -> CacheChange | None:
    """A crop by hand: somebody told buffers that fewer rows count than they have written.

    Args:
        serial: Of the cache.
        layers: Its layers, before a forward's first update.
        left: What they held after the one before.

    Returns:
        None where no buffer was told so.
    """
    cut: dict[int, tuple[int, int]] = {}
    room: list[int] = []
    for index, one in left.items():
        if one.rows is None or index >= len(layers) or not counts(type(layers[index])):
            continue
        now, most = length(layers[index]), int(layers[index].max_cache_len)
        # of a window that has moved on, rows that were taken back can't be there again
        if now < one.rows and (one.rows <= most or not now):
            cut[index] = one.rows, now
            room.append(most)
    if not cut:
        return None
    before, after = (tuple(map(min, side, room)) for side in zip(*cut.values(), strict=True))
    removed = tuple(then - now for then, now in cut.values())
    return CacheChange(serial, "crop", tuple(cut), before, after, removed)
