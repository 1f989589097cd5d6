"""From tensors of a running forward to numpy rows: one copy per dtype, not one per tensor.

On an accelerator the copy is on its way while other things are done (see `copies`); `finish`
waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Size, Tensor

from kvtrace.files import Stacked
from kvtrace.record.cache.stores import dtype_name
from kvtrace.record.steps.copies import Flight, fetch
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


class Stack(Struct, frozen=True):
    """Rows of one kind and shape, copied together.

    Attributes:
        kind: "q", "o", "k" or "v".
        indices: Sites, or cache layers.
        rows: [indices, sequences, heads, rows, dim].
        dtype: Name of their dtype.
    """

    kind: str
    indices: tuple[int, ...]
    rows: Array
    dtype: str

    def nonfinite(self) -> Iterator[tuple[Name, int]]:
        """Each with its number of NaN and Inf."""
        for index, rows in zip(self.indices, self.rows, strict=True):
            yield (self.kind, index), int(nonfinite(rows, self.dtype).sum())

    def largest(self) -> list[float]:
        """Largest finite magnitude of each."""
        flat = self.rows.reshape(len(self.indices), -1)
        if not flat.shape[1]:
            return [0.0] * len(self.indices)
        wide = np.abs(dtypes.widen(flat, self.dtype))
        top = wide.max(axis=1)
        if not np.isfinite(top).all():
            top = np.where(np.isfinite(wide), wide, 0).max(axis=1)
        values: list[float] = top.tolist()
        return values


class Copied(Struct, frozen=True):
    """Rows copied together.

    Attributes:
        stacks: All of them.
        finite: Nowhere NaN or Inf.
    """

    stacks: tuple[Stack, ...]
    finite: bool

    def of(self, kind: str) -> Mapping[int, Array]:
        """Index to rows, of one kind."""
        mine = [stack for stack in self.stacks if stack.kind == kind]
        if len(mine) == 1 and tuple(sorted(mine[0].indices)) == mine[0].indices:
            return Stacked(mine[0].indices, mine[0].rows)
        found: dict[int, Array] = {}
        for stack in mine:
            found.update(zip(stack.indices, stack.rows, strict=True))
        return found


@dataclass(slots=True)
class Copying:
    """Collects tensors, copies them in one go, hands out numpy views."""

    _names: dict[torch.dtype, list[tuple[str, Sequence[int], Size]]] = field(default_factory=dict)
    _tensors: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)
    _flying: list[tuple[torch.dtype, Flight]] = field(default_factory=list)

    def add(self, kind: str, indices: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Tensors of one kind to be copied, [sequences, heads, rows, dim] each."""
        start, count = 0, len(tensors)
        while start < count:
            shape, dtype = tensors[start].shape, tensors[start].dtype
            end = start + 1
            while end < count and tensors[end].shape == shape and tensors[end].dtype == dtype:
                end += 1
            self._names.setdefault(dtype, []).append((kind, indices[start:end], shape))
            self._tensors.setdefault(dtype, []).extend(tensors[start:end])
            start = end

    def add_whole(self, kind: str, indices: Sequence[int], whole: Tensor, shape: Size) -> None:
        """Tensors of one kind that are one already; each of a shape, or with the same rows."""
        self._names.setdefault(whole.dtype, []).append((kind, indices, shape))
        self._tensors.setdefault(whole.dtype, []).append(whole)

    @torch.no_grad()
    def start(self) -> None:
        """Start copying."""
        self._flying += [(dtype, fetch(tensors)) for dtype, tensors in self._tensors.items()]
        self._tensors = {}

    def finish(self) -> Copied:
        """Wait, and hand out the rows."""
        stacks: list[Stack] = []
        finite = True
        for dtype, flight in self._flying:
            array, name, start = as_stored(flight.land()), dtype_name(dtype), 0
            finite = finite and not nonfinite(array, name).any()
            for kind, indices, shape in self._names[dtype]:
                end = start + len(indices) * prod(shape)
                rows = array[start:end].reshape(len(indices), *shape)
                stacks.append(Stack(kind, tuple(indices), rows, name))
                start = end
        return Copied(tuple(stacks), finite)


def as_stored(tensor: Tensor) -> Array:
    """A tensor in main memory as numpy, in the dtype it is stored in; shares memory."""
    bits = _AS_BITS.get(tensor.dtype)
    array: Array = (tensor if bits is None else tensor.view(bits)).detach().numpy()
    name = dtype_name(tensor.dtype)
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
