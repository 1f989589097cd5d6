"""Values of the trace floor to JSON and back, checked field by field.

Only the dataclasses handed in are ever made, only from the types their fields declare. Unknown
keys are skipped, so that newer files stay readable; a missing key takes its default; a wrong type
or an absurd number is a `TraceError`.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar

from kvtrace.errors import TraceError
from kvtrace.trace import LogitDiff

T = TypeVar("T")


LANE_ARRAYS = (
    ("max_abs", "<f4"),
    ("rms", "<f4"),
    ("reference_max", "<f4"),
    ("sequence", "<i4"),
    ("row", "<i4"),
    ("dim", "<i4"),
    ("beyond", "<i8"),
)
"""The arrays of a LaneStep in the order they are stored, each one unit."""


@dataclass(frozen=True, slots=True)
class LaneFields:
    """What the JSON of a LANE frame says; the arrays are its payload."""

    lane: str
    step: int
    shape: tuple[int, ...]
    stored: bool = False
    logits: tuple[LogitDiff, ...] = ()
    elapsed_ns: int | None = None
    passes: tuple[tuple[int, int, int], ...] = ()


_LIMIT = 1 << 62


def encode(value: object) -> bytes:
    """Compact JSON of a dataclass; fields at their default are left out."""
    return json.dumps(_plain(value), separators=(",", ":")).encode("ascii")


def encode_plain(value: Mapping[str, object]) -> bytes:
    """Compact JSON of plain values."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def plain(value: object) -> Any:
    """A dataclass as plain values."""
    return _plain(value)


def encode_fields(extra: Mapping[str, object], value: object) -> bytes:
    """As `encode`, with more keys beside the fields."""
    return json.dumps({**extra, **_plain(value)}, separators=(",", ":")).encode("ascii")


@cache
def _defaults(cls: type) -> tuple[tuple[str, object], ...]:
    out = []
    for field in fields(cls):
        default: object = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        out.append((field.name, default))
    return tuple(out)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {
            name: _plain(item)
            for name, default in _defaults(type(value))
            if (item := getattr(value, name)) is not default and item != default
        }
    if isinstance(value, tuple) and value and (is_dataclass(value[0]) or type(value[0]) is tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


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


@cache
def _hints(cls: type) -> tuple[tuple[str, Any, Field[Any]], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field.name, hints[field.name], field) for field in fields(cls))


def _typed(hint: Any, value: Any, where: str) -> object:
    """Check one value against its type hint."""
    simple = _simple(hint, value)
    if simple is not None:
        return simple[0]
    origin = typing.get_origin(hint)
    if origin in (UnionType, typing.Union):
        return _optional(hint, value, where)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
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
