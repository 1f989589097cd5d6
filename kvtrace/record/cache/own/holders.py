"""What of the model's own could hold rows: buffers, arguments, entries, the result.

Looks into everything that modules, arguments and results hold. Parameters are never it. Only
looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

DEEPEST = 5
MOST = 4096
"""Tensors and containers that are looked into, all places together."""

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
