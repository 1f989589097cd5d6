"""From tensors of a running forward to numpy rows: one copy per dtype, not one per tensor.

On an accelerator the copy goes to pinned memory without waiting; `finish` waits once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.stores import dtype_name
from kvtrace.trace import dtypes
from kvtrace.trace.dtypes import Array

Name = tuple[str, int]
"""What rows are called: "q" or "o" and the site, "k" or "v" and the cache layer."""

_AS_BITS = {
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.bool: torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Copied:
    """Rows copied together.

    Attributes:
        rows: Name to its rows.
        flat: dtype name to all of its rows in the order they were given, one after the other.
        order: dtype name to the names in that order.
    """

    rows: Mapping[Name, Array]
    flat: Mapping[str, Array]
    order: Mapping[str, Sequence[Name]]


@dataclass(slots=True)
class Copying:
    """Collects tensors, copies them in one go, hands out numpy views."""

    _parts: dict[torch.dtype, list[tuple[Name, Tensor]]] = field(default_factory=dict)
    _flying: list[tuple[torch.dtype, Tensor]] = field(default_factory=list)

    def add(self, name: Name, tensor: Tensor) -> None:
        """A tensor to be copied."""
        found = self._parts.get(tensor.dtype)
        if found is None:
            found = self._parts[tensor.dtype] = []
        found.append((name, tensor))

    @torch.no_grad()
    def start(self) -> None:
        """Start copying."""
        for dtype, parts in self._parts.items():
            host = torch.device("cpu")
            flat = [tensor.detach().reshape(-1) for _, tensor in parts]
            if len({tensor.device for tensor in flat}) > 1:
                flat = [tensor.to(host) for tensor in flat]
            whole = torch.cat(flat)
            if whole.device.type == "cuda":
                pinned = torch.empty(whole.shape, dtype=dtype, pin_memory=True)
                whole = pinned.copy_(whole, non_blocking=True)
            elif whole.device != host:
                whole = whole.to(host)
            self._flying.append((dtype, whole))

    def finish(self) -> Copied:
        """Wait, and hand out the rows."""
        if any(whole.is_pinned() for _, whole in self._flying if torch.cuda.is_available()):
            torch.cuda.synchronize()
        rows: dict[Name, Array] = {}
        flat: dict[str, Array] = {}
        for dtype, whole in self._flying:
            array = as_stored(whole)
            flat[dtype_name(whole)] = array
            start = 0
            for name, tensor in self._parts[dtype]:
                size = prod(tensor.shape)
                rows[name] = array[start : start + size].reshape(tensor.shape)
                start += size
        order = {
            str(dtype).removeprefix("torch."): [name for name, _ in parts]
            for dtype, parts in self._parts.items()
        }
        return Copied(rows, flat, order)


def as_stored(tensor: Tensor) -> Array:
    """A tensor in main memory as numpy, in the dtype it is stored in; shares memory."""
    bits = _AS_BITS.get(tensor.dtype)
    array: Array = (tensor if bits is None else tensor.view(bits)).numpy()
    name = dtype_name(tensor)
    return array.view(dtypes.storage(name)) if dtypes.known(name) else array


def nonfinite(array: Array, name: str) -> NDArray[np.bool_]:
    """Where NaN or Inf are."""
    if name == "bfloat16":
        return np.asarray((array.view(np.uint16) & 0x7F80) == 0x7F80, np.bool_)
    if dtypes.is_float(name):
        return ~np.isfinite(array.view(dtypes.storage(name)))
    if name.startswith("float8"):
        return ~np.isfinite(dtypes.widen(array, name))
    return np.zeros(array.shape, bool)
