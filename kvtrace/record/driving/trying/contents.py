"""What a model keeps besides its parameters, as values that can be compared."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Set
from types import ModuleType

import torch
from torch import Tensor, nn

from kvtrace.record.whose import of_frameworks

_TORCHS_OWN = frozenset(vars(nn.Module()))
_DEPTH = 4
_MANY = 1000


def contents(model: nn.Module, script: ModuleType | None = None) -> dict[str, object]:
    """Buffers and attributes of all modules, default arguments and globals, as small values."""
    found: dict[str, object] = {}
    parts = set(model.modules())
    for path, module in model.named_modules():
        found.update(_kept_by(module, path, parts, _DEPTH))
    spaces: list[Mapping[str, object]] = [] if script is None else [vars(script)]
    spaces += [
        vars(one) for one in dict.fromkeys(map(type, model.modules())) if not of_frameworks(one)
    ]
    for number, space in enumerate(spaces):
        for name, value in list(space.items()):
            if not name.startswith("__"):
                for place, part in enumerate(_shared(value)):
                    found.update(_leaves(part, f"{number}.{name}.{place}", parts, _DEPTH))
    return found


def _kept_by(
    module: nn.Module, path: str, parts: Set[nn.Module], depth: int
) -> Iterator[tuple[str, object]]:
    """Buffers and attributes of one module."""
    for name, one in module._buffers.items():
        yield f"{path}.{name}", _value(one)
    for name, value in list(vars(module).items()):
        if name not in _TORCHS_OWN:
            yield from _leaves(value, f"{path}.{name}", parts, depth)


def _shared(value: object) -> list[object]:
    """What calls may share: a global or class attribute, and a function's default arguments."""
    if isinstance(value, dict | list | set | Tensor):
        return [value]
    return list(getattr(value, "__defaults__", None) or ())


def _leaves(
    value: object, place: str, parts: Set[nn.Module], depth: int
) -> Iterator[tuple[str, object]]:
    if isinstance(value, nn.Parameter) or not depth:
        return
    if isinstance(value, nn.Module):
        # in a plain list, it is no part of the model, and may hold its cache
        for path, module in value.named_modules() if value not in parts else ():
            yield from _kept_by(module, f"{place}.{path}", parts, depth - 1)
    elif value is None or isinstance(value, Tensor | int | float | str | bool):
        yield place, _value(value)
    elif isinstance(value, dict | list | tuple | set):
        yield place, len(value)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for _, (number, one) in zip(range(_MANY), enumerate(items), strict=False):
            yield from _leaves(one[1], f"{place}.{number}", parts, depth - 1)
    else:
        for name, one in list(getattr(value, "__dict__", {}).items())[:_MANY]:
            yield from _leaves(one, f"{place}.{name}", parts, depth - 1)


def _value(value: object) -> object:
    """A tensor by its shape and a checksum of its bytes.

    Not by sums: in a buffer that nobody filled, what is left there may be larger than any row.
    """
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return value if not isinstance(value, Tensor) else tuple(value.shape)
    plain = value.detach()
    if not plain.numel() or plain.layout != torch.strided or plain.is_quantized:
        return tuple(plain.shape)
    if type(plain) is not Tensor:  # its memory may be elsewhere
        return tuple(plain.shape), float(plain.double().sum())
    plain = plain.resolve_conj().resolve_neg().contiguous().cpu().reshape(-1)
    return tuple(value.shape), zlib.crc32(plain.view(torch.uint8).numpy().data)
