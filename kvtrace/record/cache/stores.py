"""The table of cache layers a trace names: one entry for every set of K,V rows of one shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import CacheUpdate, Recurrent
from kvtrace.record.match import digest, nearly, same
from kvtrace.trace import INEXACT, CacheLayer

Key = tuple[object, ...]

PACKED = "rows are packed in memory; here they are as attention was given them"

MIXED = "keys are {} and values {} in the cache; rows of both are kept here, and counted, as {}"


@dataclass(slots=True)
class Stores:
    """Cache layers in the order they were met, and the next cell of each."""

    layers: list[CacheLayer] = field(default_factory=list)
    next_cell: list[int] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    _index: dict[Key, int] = field(default_factory=dict)
    _row_bytes: dict[tuple[int, ...], int] = field(default_factory=dict)

    def of_update(self, update: CacheUpdate, nth: int, *, latent: bool) -> int:
        """The layer that an update belongs to.

        Args:
            update: It.
            nth: Earlier updates of this layer of this cache in the same forward.
            latent: No attention is given these rows as they are.
        """
        dtype = common(update.keys, update.values)
        shape = _shape(update.keys, update.values)
        key = (update.part, update.layer, nth, *shape, dtype)
        found = self._index.get(key)
        if found is not None:
            return found
        one = latent and shape[0] == 1  # several heads are heads, put together anew when read
        kind = "latent" if one else "cross" if update.part == "cross" else _kind(update)
        store = self._add(key, update.layer, kind, shape, dtype, (update.window, update.capacity))
        if kind == "quantised":
            self.say(store, remark=PACKED)
        elif update.keys.dtype != update.values.dtype:
            each = (update.keys.dtype, update.values.dtype, dtype)
            self.say(store, remark=MIXED.format(*map(dtype_name, each)))
        if update.is_one:
            self.say(store, shared_dim=shape[2])
        return store

    def of_call(self, call: AttentionCall) -> int:
        """The layer of rows that no known cache handed to a call."""
        dtype = common(call.keys, call.values)
        shape = _shape(call.keys, call.values)
        key = ("call", call.module, call.call, *shape, dtype)
        found = self._index.get(key)
        return self._add(key, -1, "uncached", shape, dtype) if found is None else found

    def say(self, store: int, **more: Any) -> None:
        """Say more of a layer than was known when it was met: its kind, limits, where it is."""
        now = self.layers[store]
        if any(getattr(now, name) != value for name, value in more.items()):
            self.layers[store] = replace(now, **more)
            self._row_bytes.clear()

    def judge(self, store: int, update: CacheUpdate) -> None:
        """Say of somebody's own cache that it hands back other numbers than it was given."""
        if update.known or self.layers[store].remark:
            return
        new = update.new_keys.shape[2]
        for given, rows in ((update.new_keys, update.keys), (update.new_values, update.values)):
            back = rows[:, :, rows.shape[2] - new :]
            if back.shape == given.shape and not same(back.to(given.dtype), given):
                # else its newest rows stand elsewhere; those of equal tokens may be nearly equal
                if nearly(back, given) and not _among(given, rows):
                    self.say(store, remark=INEXACT)
                return

    def of_recurrent(self, one: Recurrent) -> int:
        """The layer of a recurrent memory."""
        key = ("state", one.layer)
        found = self._index.get(key)
        if found is not None:
            return found
        return self._add(key, one.layer, "state", (1, 1, 1), torch.float32, nbytes=one.nbytes)

    def row_bytes(self, layers: tuple[int, ...]) -> int:
        """Memory of one row of each of these layers; rows that no cache holds have none."""
        found = self._row_bytes.get(layers)
        if found is None:
            held = [self.layers[index] for index in layers if self.layers[index].held]
            found = sum(one.row_bytes for one in held)
            self._row_bytes[layers] = found
        return found

    def take(self, store: int, cells: int) -> int:
        """Number the next cells of a layer; the first one's number."""
        first = self.next_cell[store]
        self.next_cell[store] += cells
        return first

    def _add(
        self,
        key: Key,
        layer: int,
        kind: str,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        limits: tuple[int | None, int | None] = (None, None),
        nbytes: int = 0,
    ) -> int:
        index = self._index[key] = len(self.layers)
        heads, key_dim, value_dim = shape
        window, capacity = limits
        self.layers.append(
            CacheLayer(
                index,
                layer,
                kind,
                heads,
                key_dim,
                value_dim,
                dtype_name(dtype),
                window,
                capacity,
                nbytes,
            )
        )
        self.next_cell.append(0)
        self.dtypes.append(dtype)
        return index


def _among(given: Tensor, rows: Tensor) -> bool:
    """Whether all rows that were given are, bit for bit, among others."""
    return bool(np.isin(digest(given), digest(rows.to(given.dtype))).all())


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as the trace calls it."""
    found = _NAMES.get(dtype)
    if found is None:
        found = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return found


_NAMES: dict[torch.dtype, str] = {}


def common(one: Tensor, other: Tensor) -> torch.dtype:
    """The dtype that holds the numbers of both: some models make one of two in float32."""
    if one.dtype == other.dtype:
        return one.dtype
    try:
        return torch.promote_types(one.dtype, other.dtype)
    except RuntimeError:  # 8 bits promote to nothing
        return torch.float32


def _shape(keys: Tensor, values: Tensor) -> tuple[int, int, int]:
    return keys.shape[1], keys.shape[3], values.shape[3]


def _kind(update: CacheUpdate) -> str:
    name = update.class_name
    for part, kind in (("Quantized", "quantised"), ("Static", "static"), ("Sliding", "sliding")):
        if part in name:
            return kind
    return "static" if update.capacity is not None else "dynamic"
