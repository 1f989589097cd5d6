"""What of the model's own holds the rows an attention was given: a buffer, an argument, an entry.

Looked for among the tensors that modules, arguments and results hold: first by memory, which views
and slices share, then by content, since heads may have been repeated or rows rotated on the way.
Parameters are never it. Only looks; keeps no tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.match import digest

DEEPEST = 5
MOST = 4096
"""Tensors and containers that are looked into, all places together."""
LARGEST = 1 << 26
"""Numbers of a tensor that is still searched for a row."""

_TORCHS_OWN = frozenset(vars(nn.Module()))
"""What every module has: its parameters, buffers and modules are looked at by themselves."""

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, FunctionType, ModuleType)


class Holder(Struct, frozen=True, eq=False):
    """A tensor that the model, its caller or its result holds.

    Attributes:
        name: As code calls it.
        tensor: It.
        rank: How lasting the place is: 2 on a module, 1 an argument, 0 a result.
        memory: Address of the tensor's memory.
    """

    name: str
    tensor: Tensor
    rank: int
    memory: int = -1


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

    def told(self, *, grows: bool) -> str:
        """Name and shape; the axis that grows has no size."""
        sizes = [
            "rows" if grows and n == self.axis else str(size) for n, size in enumerate(self.shape)
        ]
        return f"{self.name} [{', '.join(sizes)}]"


def holders(model: nn.Module, arguments: Mapping[str, object], result: object) -> list[Holder]:
    """Everything that could hold rows, the most lasting places first."""
    modules = list(model.named_modules())
    walk = _Walk({id(module): path for path, module in modules})
    for path, module in modules:
        for name, value in vars(module).items():
            if name not in _TORCHS_OWN:
                walk.into(f"{path}.{name}".lstrip("."), value, 2)
        for name, buffer in module.named_buffers(recurse=False):
            walk.into(f"{path}.{name}".lstrip("."), buffer, 2)
    for name, value in arguments.items():
        told = name.startswith(("global ", "local "))
        walk.into(name if told else f"argument {name}", value, 1)
    walk.into("the result", result, 0)
    return walk.found


class _Walk:
    """Looks into containers and objects, each once."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.found: list[Holder] = []
        self._names = names
        self._met: set[int] = set()

    def into(self, name: str, value: object, rank: int, depth: int = 0) -> None:
        """Note a tensor, or look into a container."""
        if isinstance(value, _PLAIN) or depth > DEEPEST or len(self._met) > MOST:
            return
        if id(value) in self._met or isinstance(value, nn.Parameter | nn.Module):
            return
        self._met.add(id(value))
        if isinstance(value, Tensor):
            rows = value.is_floating_point() and value.dim() > 1 and value.numel()
            if rows and value.layout is torch.strided:
                memory = value.untyped_storage().data_ptr()
                self.found.append(Holder(name, value, rank, memory))
            return
        for more, part in self._parts(value):
            self.into(name + more, part, rank, depth + 1)

    def _parts(self, value: object) -> Iterator[tuple[str, object]]:
        # others that look like mappings and sequences may fetch what they give from a disk
        if isinstance(value, dict):
            for key, part in list(value.items())[:MOST]:
                yield f"[{self._key(key)}]", part
        elif isinstance(value, list | tuple | deque):
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                yield from (
                    (f".{name}", part) for name, part in zip(value._fields, value, strict=True)
                )
            else:
                yield from ((f"[{n}]", part) for n, part in enumerate(list(value)[:MOST]))
        elif is_dataclass(value):
            yield from ((f".{one.name}", _read(value, one.name)) for one in fields(value))
        else:
            own: Any = getattr(value, "__dict__", {})
            yield from ((f".{name}", part) for name, part in list(own.items())[:MOST])

    def _key(self, key: object) -> str:
        if isinstance(key, nn.Module):
            return self._names.get(id(key)) or type(key).__name__
        return repr(key) if isinstance(key, str | int | tuple) else type(key).__name__


def _read(owner: object, name: str) -> object:
    """An attribute; None where reading it is refused, as by configs that differ by layer."""
    try:
        return getattr(owner, name)
    except Exception:
        return None


def going_on(among: Sequence[Holder], last: str | None) -> Sequence[Holder]:
    """The same, from one on: what held the rows of a layer is mostly beside the next layer's.

    Args:
        among: In the order of preference.
        last: Name of it; those that are as lasting come before it after all others of their kind.
    """
    at = next((n for n, one in enumerate(among) if one.name == last), None)
    if at is None:
        return among
    rank = among[at].rank
    before = [one for one in among if one.rank > rank]
    alike = [one for one in among if one.rank == rank]
    after = [one for one in among if one.rank < rank]
    turn = next(n for n, one in enumerate(alike) if one is among[at]) + 1
    return [*before, *alike[turn:], *alike[:turn], *after]


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
    both = np.isin(wanted, _held(rows, holder.tensor))
    if not both.any():
        return None
    beside = [one for one in among if one.rank == holder.rank and one.tensor.dtype == rows.dtype]
    looked = 0
    for one in sorted(beside, key=lambda one: -_alike(one.name, holder.name)):
        looked += one.tensor.numel()
        if both.all() or looked > LARGEST:
            break
        both |= np.isin(wanted, _held(rows, one.tensor))
    return None if both.all() else tuple(np.flatnonzero(both).tolist())


def _alike(name: str, other: str) -> int:
    """Letters with which both begin."""
    both = zip(name, other, strict=False)
    return next((n for n, (a, b) in enumerate(both) if a != b), min(len(name), len(other)))


def _held(rows: Tensor, tensor: Tensor) -> np.ndarray:
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
    """The axis of a tensor along which rows in the same memory lie; -1: none."""
    stride = rows.stride(2)
    for axis in range(tensor.dim()):
        if tensor.stride(axis) == stride and tensor.shape[axis] >= rows.shape[2]:
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


def nbytes(found: Sequence[FoundHolder]) -> int:
    """Memory of several, each counted once."""
    return sum({one.storage: one.nbytes for one in found}.values())
