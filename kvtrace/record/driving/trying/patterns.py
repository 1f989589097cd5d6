"""What a call was given, as far as two calls can be compared by it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kvtrace.record.driving.ways.roles import Signature

_DEPTH, _PARTS = 4, 64
"""How far into a container is looked, and at how many parts of each."""

Pattern = dict[str, object]
"""Parameter to what it was given; what equals a default is left out."""


def pattern(signature: Signature, values: Mapping[str, object]) -> Pattern:
    """What a call gives, without what equals a default."""
    found: Pattern = {}
    for parameter in signature.parameters:
        if parameter.name not in values:
            continue
        value = values[parameter.name]
        if parameter.required or not _same(value, parameter.default):
            found[parameter.name] = _kind(value)
    return found


def _kind(value: object) -> object:
    """What can be compared of a value: small ones as they are, a tensor's shape, a type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor):
        kind = "floats" if value.is_floating_point() else "whole"
        return kind, tuple(value.shape)
    return _built(value, _DEPTH)


def _built(value: object, depth: int) -> str:
    """How a container is built, down to the types in it; of what repeats, once.

    A list of None is no list of (None, None): one may stand for no cache, the other for an empty
    one. How long a part is, or a tensor in it, depends on the room that was asked for.
    """
    name = type(value).__name__
    if not depth or not isinstance(value, dict | list | tuple) or not value:
        return name
    parts = list(value.values() if isinstance(value, dict) else value)[:_PARTS]
    return f"{name}[{', '.join(dict.fromkeys(_built(one, depth - 1) for one in parts))}]"


def _same(value: object, default: object) -> bool:
    plain = value is None or isinstance(value, bool | int | float | str)
    return plain and type(value) is type(default) and value == default
