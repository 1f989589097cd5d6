"""Values of the trace floor to JSON and back, checked field by field.

Only the dataclasses handed in are ever made, only from the types their fields declare. Unknown
keys are skipped, so that newer files stay readable; a missing key takes its default; a wrong type
or an absurd number is a `TraceError`.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar

from kvtrace.errors import TraceError

T = TypeVar("T")


Fields = Mapping[str, object]
"""A parsed JSON object."""

_LIMIT = 1 << 62
_PLANS: dict[type[Any], tuple[tuple[str, object, Callable[[Any], Any] | None], ...]] = {}
_HINTS: dict[type[Any], tuple[tuple[str, Any, Field[Any]], ...]] = {}
_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def encode(value: object) -> bytes:
    """Compact JSON of a dataclass; fields at their default are left out."""
    return _JSON.encode(plain(value)).encode("ascii")


def encode_fields(extra: Mapping[str, object], value: object) -> bytes:
    """As `encode`, with more keys beside the fields."""
    return _JSON.encode({**extra, **plain(value)}).encode("ascii")


def encode_texts(texts: Mapping[int, str]) -> bytes:
    """Compact JSON of texts by token id; nothing for none."""
    return _JSON.encode(dict(texts)).encode("ascii") if texts else b""


def plain(value: object) -> dict[str, Any]:
    """A dataclass as a dict that JSON can hold; fields at their default are left out."""
    out: dict[str, Any] = {}
    for name, default, convert in _PLANS.get(type(value)) or _plan(type(value)):
        item = getattr(value, name)
        if item is not default and item != default:
            out[name] = item if convert is None else convert(item)
    return out


def _plan(cls: type[Any]) -> tuple[tuple[str, object, Callable[[Any], Any] | None], ...]:
    """Name, default and conversion of every field."""
    if cls in _PLANS:
        return _PLANS[cls]
    out: list[tuple[str, object, Callable[[Any], Any] | None]] = []
    for name, hint, field in _hints(cls):
        default: object = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        out.append((name, default, _conversion(hint)))
    return _PLANS.setdefault(cls, tuple(out))


def _conversion(hint: Any) -> Callable[[Any], Any] | None:
    """How a field becomes plain; None where JSON takes it as it is."""
    if isinstance(hint, type) and is_dataclass(hint):
        return plain
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = _conversion(arguments[0])
        return None if item is None else lambda items: [item(one) for one in items]
    if origin in (UnionType, typing.Union):
        found = next(filter(None, map(_conversion, arguments)), None)
        return None if found is None else lambda one: None if one is None else found(one)
    return dict if isinstance(origin, type) and issubclass(origin, Mapping) else None


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        TraceError: It is not one.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not readable as JSON ({type(error).__name__}).") from None
    if not isinstance(value, dict):
        raise TraceError(f"{where}: an object was expected, found {type(value).__name__}.")
    return value


def count(fields: Mapping[str, object], name: str) -> int:
    """A number of things in parsed JSON, 0 if it is absent.

    Raises:
        TraceError: It is no such number.
    """
    value = fields.get(name, 0)
    if type(value) is not int or not 0 <= value < _LIMIT:
        raise TraceError(f"{name}: a number of things was expected.")
    return value


def decode(cls: type[T], value: object, where: str) -> T:
    """Make a `cls` from parsed JSON.

    Raises:
        TraceError: A field is missing, or has the wrong type.
    """
    if not isinstance(value, dict):
        raise TraceError(f"{where}: an object was expected, found {type(value).__name__}.")
    arguments: dict[str, object] = {}
    for name, hint, field in _hints(cls):
        if name in value:
            arguments[name] = _typed(hint, value[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise TraceError(f"{where}: {name} is missing.")
    return cls(**arguments)


def _hints(cls: type[Any]) -> tuple[tuple[str, Any, Field[Any]], ...]:
    if cls not in _HINTS:
        hints = typing.get_type_hints(cls)
        _HINTS[cls] = tuple((field.name, hints[field.name], field) for field in fields(cls))
    return _HINTS[cls]


def _typed(hint: Any, value: Any, where: str) -> object:
    """Check one value against its type hint."""
    simple = _simple(hint, value)
    if simple is not None:
        return simple[0]
    origin = typing.get_origin(hint)
    if origin in (UnionType, typing.Union):
        return _optional(hint, value, where)
    if origin is tuple and isinstance(value, list):
        item, *rest = typing.get_args(hint)
        if rest[-1:] != [Ellipsis] and len(value) != 1 + len(rest):
            raise TraceError(f"{where}: {len(value)} numbers, expected {1 + len(rest)}.")
        return tuple([_typed(item, part, where) for part in value])
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        key, item = typing.get_args(hint)
        return {_key(key, name, where): _typed(item, part, where) for name, part in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return decode(hint, value, where)
    raise TraceError(f"{where}: found {type(value).__name__}, expected {_name(hint)}.")


def _simple(hint: Any, value: Any) -> tuple[object] | None:
    kind = type(value)
    if hint is int and kind is int and -_LIMIT < value < _LIMIT:
        return (value,)
    if hint is float and (kind is float or (kind is int and -_LIMIT < value < _LIMIT)):
        return (float(value),)
    if (hint is str and kind is str) or (hint is bool and kind is bool):
        return (value,)
    return None


def _optional(hint: Any, value: Any, where: str) -> object:
    choices = typing.get_args(hint)
    if value is None and NoneType in choices:
        return None
    return _typed(next(choice for choice in choices if choice is not NoneType), value, where)


def _key(hint: Any, name: str, where: str) -> object:
    if hint is str:
        return name
    if not (name.lstrip("-").isdecimal() and len(name) < 20):
        raise TraceError(f"{where}: the key {name[:20]!r} is not a number.")
    return int(name)


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
