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
from typing import Any, TypeVar, cast

from kvtrace.errors import TraceError

T = TypeVar("T")


Fields = Mapping[str, object]
"""A parsed JSON object."""

_Read = Callable[[Any], Any]

_LIMIT = 1 << 62
_PLANS: dict[type[Any], tuple[tuple[str, object, Callable[[Any], Any] | None], ...]] = {}
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
    try:
        return cast(T, _reader(cls)(value))
    except _MisfitError as error:
        raise TraceError(f"{where}{error.path}: {error.text}") from None


def _hints(cls: type[Any]) -> tuple[tuple[str, Any, Field[Any]], ...]:
    """Name, type and field of every field."""
    hints = typing.get_type_hints(cls)
    return tuple((field.name, hints[field.name], field) for field in fields(cls))


class _MisfitError(Exception):
    """A value that does not fit its field.

    Attributes:
        text: What is wrong.
        path: The fields that lead to it.
    """

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.text, self.path = text, path


def _reader(hint: Any) -> _Read:
    """What checks a value against a type hint and makes it that type; worked out once a hint."""
    read = _READERS.get(hint)
    if read is None:
        read = _READERS[hint] = _made_reader(hint)
    return read


def _made_reader(hint: Any) -> _Read:
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (UnionType, typing.Union):
        return _optional(arguments)
    if origin is tuple:
        return _tuple(hint, *arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(hint, *arguments)
    if isinstance(hint, type) and is_dataclass(hint):
        return _object(hint)

    def never(value: Any) -> object:
        raise _misfit(hint, value)

    return never


def _misfit(hint: Any, value: Any) -> _MisfitError:
    wanted = getattr(hint, "__name__", str(hint))
    return _MisfitError(f"found {type(value).__name__}, expected {wanted}.")


def _object(cls: type[Any]) -> _Read:
    missing = object()
    plan = [
        (name, _reader(hint), field.default is MISSING and field.default_factory is MISSING)
        for name, hint, field in _hints(cls)
    ]

    def read(value: Any) -> object:
        if not isinstance(value, dict):
            raise _MisfitError(f"an object was expected, found {type(value).__name__}.")
        arguments: dict[str, object] = {}
        for name, read_field, required in plan:
            given = value.get(name, missing)
            if given is not missing:
                try:
                    arguments[name] = read_field(given)
                except _MisfitError as error:
                    raise _MisfitError(error.text, f".{name}{error.path}") from None
            elif required:
                raise _MisfitError(f"{name} is missing.")
        return cls(**arguments)

    return read


def _tuple(hint: Any, item: Any, *rest: Any) -> _Read:
    read_item, size = _reader(item), None if rest[-1:] == (Ellipsis,) else 1 + len(rest)

    def read(value: Any) -> object:
        if not isinstance(value, list):
            raise _misfit(hint, value)
        if size is not None and len(value) != size:
            raise _MisfitError(f"{len(value)} numbers, expected {size}.")
        return tuple([read_item(part) for part in value])

    return read


def _mapping(hint: Any, key: Any, item: Any) -> _Read:
    read_key, read_item = (_number if key is int else str), _reader(item)

    def read(value: Any) -> object:
        if not isinstance(value, dict):
            raise _misfit(hint, value)
        return {read_key(name): read_item(part) for name, part in value.items()}

    return read


def _number(name: str) -> int:
    if not (name.lstrip("-").isdecimal() and len(name) < 20):
        raise _MisfitError(f"the key {name[:20]!r} is not a number.")
    return int(name)


def _optional(choices: tuple[Any, ...]) -> _Read:
    read_one = _reader(next(choice for choice in choices if choice is not NoneType))

    def read(value: Any) -> object:
        return None if value is None else read_one(value)

    return read


def _int(value: Any) -> object:
    if type(value) is int and -_LIMIT < value < _LIMIT:
        return value
    raise _misfit(int, value)


def _float(value: Any) -> object:
    if type(value) is float:
        return value
    if type(value) is int and -_LIMIT < value < _LIMIT:
        return float(value)
    raise _misfit(float, value)


def _exactly(kind: type[Any]) -> _Read:
    def read(value: Any) -> object:
        if type(value) is kind:
            return value
        raise _misfit(kind, value)

    return read


_READERS: dict[Any, _Read] = {
    int: _int,
    float: _float,
    str: _exactly(str),
    bool: _exactly(bool),
}
