"""Any value of ours as what JSON can hold, without loss and without lies.

Structs become objects with the names of their public fields, so that the JSON reads like the API.
Numbers that are not finite become the strings "NaN", "Infinity" and "-Infinity": null stays what
it is, "not there".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import numpy as np
from msgspec import Struct

SCHEMA = 1
"""Of the JSON that show, check and diff print; raised when a name changes its meaning."""

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def plain(value: object) -> Plain:
    """As dicts, lists, strings and numbers.

    Raises:
        TypeError: It is none of ours.
    """
    if isinstance(value, Enum):
        return value.name.lower() if isinstance(value, int) else str(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return number(value) if isinstance(value, float) else _compound(value)


def _compound(value: object) -> Plain:
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Struct):
        said = [name for name in value.__struct_fields__ if not name.startswith("_")]
        return {name: plain(getattr(value, name)) for name in said}
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def number(value: float) -> float | str:
    """A float; by name where JSON has none."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
