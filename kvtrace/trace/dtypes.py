"""Element types as they are stored, and how they widen to what numpy can calculate with.

bfloat16 and the float8 types have no numpy type: they are stored as their bits and widened,
without loss, to float32 when read.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Floats = NDArray[np.floating]

_STORAGE: dict[str, np.dtype[np.generic]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("u1"),
}


def known(name: str) -> bool:
    """Whether a dtype of this name can be stored."""
    return name in _STORAGE


def is_float(name: str) -> bool:
    """Whether a dtype of this name has a NaN to mark what is absent."""
    return name in ("float64", "float32", "float16", "bfloat16")


def storage(name: str) -> np.dtype[np.generic]:
    """The numpy dtype that holds the bits of `name`.

    Raises:
        KeyError: For a name that is not stored; ask `known` first.
    """
    return _STORAGE[name]


def itemsize(name: str) -> int:
    """Bytes of one element."""
    return _STORAGE[name].itemsize


@cache
def _float8_table(exponent_bits: int, mantissa_bits: int, *, has_infinity: bool) -> Floats:
    """All 256 values of a float8 format; OCP 8-bit Floating Point Specification, revision 1.0."""
    code = np.arange(256)
    sign = np.where(code >= 128, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    normal = (1.0 + fraction) * np.exp2((exponent - bias).astype(np.float64))
    values = sign * np.where(exponent == 0, fraction * 2.0 ** (1 - bias), normal)
    top = exponent == (1 << exponent_bits) - 1
    if has_infinity:
        values = np.where(top, np.where(fraction == 0, sign * np.inf, np.nan), values)
    else:
        values = np.where((code & 0x7F) == 0x7F, np.nan, values)
    return values.astype(np.float32)


def widen(raw: Array, name: str) -> Floats:
    """Stored bits as floats, exactly: float32, or float64 where that was stored.

    Args:
        raw: Any shape, of dtype `storage(name)`.
        name: The dtype that was recorded.
    """
    if name == "bfloat16":
        return np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)
    if name == "float8_e4m3fn":
        return _float8_table(4, 3, has_infinity=False)[raw.astype(np.intp)]
    if name == "float8_e5m2":
        return _float8_table(5, 2, has_infinity=True)[raw.astype(np.intp)]
    return raw.astype(np.float64 if name == "float64" else np.float32, copy=False)
