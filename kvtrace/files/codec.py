"""Values of the trace floor to JSON and back, checked field by field.

Only the structs handed in are ever made, only from the types their fields declare. Unknown keys
are skipped, so that newer files stay readable; a missing key takes its default; a wrong type or
an absurd number is a `TraceError`.

The JSON itself is Python's: what a model computed may be NaN or infinite, and that must be read
again as what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgspec

from kvtrace.errors import TraceError

T = TypeVar("T")

_LIMIT = 1 << 62
_DIGITS = 20
_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def encode(value: object) -> bytes:
    """Compact JSON of a struct."""
    return _JSON.encode(plain(value)).encode("ascii")


def encode_fields(extra: Mapping[str, object], value: object) -> bytes:
    """As `encode`, with more keys beside the fields."""
    return _JSON.encode({**extra, **plain(value)}).encode("ascii")


def encode_texts(texts: Mapping[int, str]) -> bytes:
    """Compact JSON of texts by token id; nothing for none."""
    return _JSON.encode(dict(texts)).encode("ascii") if texts else b""


def plain(value: object) -> dict[str, Any]:
    """A struct as a dict that JSON can hold."""
    # NumPy's numbers are the only other thing that a field may hold
    return cast("dict[str, Any]", msgspec.to_builtins(value, enc_hook=float))


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        TraceError: It is not one.
    """
    try:
        value = json.loads(raw, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not readable as JSON ({type(error).__name__}).") from None
    if not isinstance(value, dict):
        raise TraceError(f"{where}: an object was expected, found {type(value).__name__}.")
    return value


def _bounded(digits: str) -> int:
    """No number is so large that counting with it overflows."""
    if len(digits) < _DIGITS and -_LIMIT < (number := int(digits)) < _LIMIT:
        return number
    raise ValueError(f"{digits[:_DIGITS]} is beyond any number of a trace")


def count(fields: Mapping[str, object], name: str) -> int:
    """A number of things in parsed JSON, 0 if it is absent.

    Raises:
        TraceError: It is no such number.
    """
    value = fields.get(name, 0)
    if type(value) is not int or value < 0:
        raise TraceError(f"{name}: a number of things was expected.")
    return value


def decode(cls: type[T], value: object, where: str) -> T:
    """Make a `cls` from parsed JSON.

    Raises:
        TraceError: A field is missing, or has the wrong type.
    """
    try:
        return msgspec.convert(value, cls, str_keys=True)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise TraceError(f"{where}: {error}") from None
