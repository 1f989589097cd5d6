"""Which tensor holds the rows an attention was given, of those that the model could keep them in.

First by memory, which views and slices share, then by content, since heads may have been repeated
or rows rotated on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import prod

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.cache.own.holders import Holder
from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.match import digest

LARGEST = 1 << 26
"""Numbers of a tensor that is still searched for a row."""


class FoundHolder(Struct, frozen=True):
    """Where rows are held.

    Attributes:
        name: As code calls it.
        shape: Of the tensor.
        axis: Along which rows lie; -1: unknown.
        rank: Of the holder.
        slots: Rows the tensor has room for; 0 where that can't be told.
        storage: Address of its memory, to count it once.
        nbytes: Of the whole tensor.
        kept: Slots of the rows it holds, where it has no room for all; else None.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    rank: int
    slots: int
    storage: int
    nbytes: int
    kept: tuple[int, ...] | None = None

    @property
    def row_bytes(self) -> int:
        """Of one row of one sequence, which lies along the first axis that rows don't."""
        each = self.nbytes // max(1, prod(self.shape))
        sizes = [size for n, size in enumerate(self.shape) if n != self.axis]
        return each * prod(sizes[1:] if len(sizes) > 1 else sizes)

    def told(self, *, grows: bool) -> str:
        """Name and shape; the axis that grows has no size."""
        sizes = [
            "rows" if grows and n == self.axis else str(size) for n, size in enumerate(self.shape)
        ]
        return f"{self.name} [{', '.join(sizes)}]"


@torch.no_grad()
def find(
    rows: Tensor, slots: Sequence[int], among: Sequence[Holder], *, which: bool = True
) -> FoundHolder | None:
    """Who holds some of the rows an attention was given.

    Args:
        rows: As attended to, [sequences, kv_heads, seq, dim].
        slots: Rows to be found, the surest first; those of zeros are no evidence.
        among: In this order of preference.
        which: Say which of the rows are held, where there is no room for all.
    """
    filled = (slot for slot in slots if bool((rows[0, :, slot] != 0).any()))
    telling = list(islice(filled, 2))
    if not telling:
        return None
    memory = rows.untyped_storage().data_ptr()
    sharing = [one for one in among if one.memory == memory]
    for one in sorted(sharing, key=lambda one: one.tensor.data_ptr() != rows.data_ptr()):
        if _covers(one.tensor, rows):
            return described(one, _axis_of(rows, one.tensor))
    for one in among:
        if one.tensor.dtype == rows.dtype and one.tensor.numel() <= LARGEST:
            axis = _by_content(rows, telling, one.tensor)
            if axis is not None:
                found = described(one, axis)
                if not which or not 0 < found.slots < rows.shape[2]:
                    return found
                return replace(found, kept=_kept(rows, one, among))
    return None


def _kept(rows: Tensor, holder: Holder, among: Sequence[Holder]) -> tuple[int, ...] | None:
    """Slots of the rows that a smaller tensor holds, or others that are as lasting; None: of all.

    They may lie in several parts: recent ones and summaries, sinks and a window. Those of a part
    are named alike.
    """
    wanted = digest(rows[:1, :1])[0]
    both = np.isin(wanted, held_digests(rows, holder.tensor))
    if not both.any():
        return None
    beside = [one for one in among if one.rank == holder.rank and one.tensor.dtype == rows.dtype]
    looked = 0
    for one in sorted(beside, key=lambda one: -_alike(one.name, holder.name)):
        looked += one.tensor.numel()
        if both.all() or looked > LARGEST:
            break
        both |= np.isin(wanted, held_digests(rows, one.tensor))
    return None if both.all() else tuple(np.flatnonzero(both).tolist())


def _alike(name: str, other: str) -> int:
    """Letters with which both begin."""
    both = zip(name, other, strict=False)
    return next((n for n, (a, b) in enumerate(both) if a != b), min(len(name), len(other)))


def held_digests(rows: Tensor, tensor: Tensor) -> np.ndarray:
    """Digests of what a tensor holds that may be rows of the first head, by its sizes."""
    dim = rows.shape[3]
    found = [digest(rows[:1, :1, :0])[0]]
    for axis in range(tensor.dim()):
        if tensor.shape[axis] and tensor.shape[axis] % dim == 0:
            held = tensor.movedim(axis, -1)[..., :dim].reshape(1, 1, -1, dim)
            found.append(digest(held)[0])
    return np.concatenate(found)


def described(one: Holder, axis: int) -> FoundHolder:
    """A holder of rows along an axis; -1: not known which."""
    tensor = one.tensor
    slots = tensor.shape[axis] if axis >= 0 else 0
    storage = tensor.untyped_storage().data_ptr()
    return FoundHolder(one.name, tuple(tensor.shape), axis, one.rank, slots, storage, tensor.nbytes)


def _covers(tensor: Tensor, rows: Tensor) -> bool:
    """Whether a tensor in the same memory holds the rows, and not what lies between them."""
    if tensor.data_ptr() == rows.data_ptr():
        return True
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return tensor.is_contiguous() and start <= rows.data_ptr() < end


def _axis_of(rows: Tensor, tensor: Tensor) -> int:
    """The axis of a tensor along which rows in the same memory lie; -1: none, or not known which.

    How far a row is from the next one says little where there is one: heads may be as far apart.
    """
    _, heads, count, _ = rows.shape
    stride, across = rows.stride(2), rows.stride(1)
    for axis in range(tensor.dim()):
        size, step = tensor.shape[axis], tensor.stride(axis)
        untold = count == 1 and (size == 1 or (size == heads and step == across))
        if step == stride and size >= count and not untold:
            return axis
    return -1


def _by_content(rows: Tensor, telling: Sequence[int], tensor: Tensor) -> int | None:
    """The axis along which a tensor holds these rows, -1 where one row says nothing; None: not."""
    _, heads, _, dim = rows.shape
    for axis in reversed(range(tensor.dim())):
        size = tensor.shape[axis]
        if size not in (dim, heads * dim):
            continue
        whole = size == heads * dim
        moved = tensor.movedim(axis, -1)
        places: list[list[int]] = []
        for slot in telling:
            row = rows[0, :, slot].reshape(-1) if whole else rows[0, 0, slot]
            hits = (moved == row).all(-1).nonzero()
            if len(hits):
                places.append(hits[0].tolist())
            elif not places:
                break
        if not places:
            continue
        others = [n for n in range(tensor.dim()) if n != axis]
        if len(places) > 1:
            apart = [n for n, a, b in zip(others, places[0], places[1], strict=True) if a != b]
            return apart[0] if len(apart) == 1 else -1
        last = rows[0, -1, telling[0]]
        beside = [] if whole else (moved == last).all(-1).nonzero()[:1].tolist()
        if heads > 1 and beside:  # where the last head lies is the axis of heads
            others = [n for n, a, b in zip(others, places[0], beside[0], strict=True) if a == b]
        long = [n for n in others if tensor.shape[n] > 1]
        return long[0] if len(long) == 1 else -1
    return None


def held_by(updates: Sequence[CacheUpdate]) -> set[int]:
    """Where the memory begins that caches hold after some updates."""
    held = [part for one in updates for part in (one.held_keys, one.held_values)]
    return {part.untyped_storage().data_ptr() for part in held if part is not None}


def nbytes_of(found: Sequence[FoundHolder]) -> int:
    """Memory of several, each counted once."""
    return sum({one.storage: one.nbytes for one in found}.values())
