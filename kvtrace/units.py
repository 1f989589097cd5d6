"""Integers as people read them: counts, bytes, FLOPs, nanoseconds, ratios.

The only module that formats numbers with units. It knows nothing of what they measure.
"""

from __future__ import annotations

_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

NAMES = frozenset((*(f"{prefix}FLOP" for prefix in _DECIMAL), *_BINARY, "ms", "s"))
"""Every unit as it is written here after a number and a space."""


def _scaled(value: float, base: float, last: int) -> tuple[float, int]:
    """Divide by `base` until the printed number has at most three digits before the point."""
    power = 0
    while abs(value) >= base * 0.9995 and power < last:
        value /= base
        power += 1
    return value, power


def _three_digits(value: float) -> str:
    """About three significant digits, never an exponent: 1.23, 12.3, 123."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def counted(count: int, noun: str) -> str:
    """How many of something: `1 row`, `2 rows`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def flops(count: int) -> str:
    """Floating-point operations (multiply-add = 2): `250 MFLOP`, `13.9 GFLOP`."""
    value, power = _scaled(count, 1000.0, len(_DECIMAL) - 1)
    digits = str(count) if power == 0 else _three_digits(value)
    return f"{digits} {_DECIMAL[power]}FLOP"


def byte_size(count: int) -> str:
    """Bytes in powers of 1024: `144 KiB`, `68.7 MiB`."""
    value, power = _scaled(count, 1024.0, len(_BINARY) - 1)
    return f"{count if power == 0 else _three_digits(value)} {_BINARY[power]}"


def duration(nanoseconds: int) -> str:
    """Milliseconds up to ten seconds, then seconds: `0.90 ms`, `12.3 s`."""
    if abs(nanoseconds) < 10_000_000_000:
        return f"{_three_digits(nanoseconds / 1e6)} ms"
    return f"{_three_digits(nanoseconds / 1e9)} s"


def ratio(larger: float, smaller: float) -> str:
    """How many times more: `55.6×`; `–` when there is nothing to divide by."""
    return f"{_three_digits(larger / smaller)}×" if smaller else "–"


def weight(value: float) -> str:
    """A share of attention with the digits that tell it from others: `0.4521`, `3.1e-05`, `0`."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if value < 0.001 else f"{value:.4f}"


def count(number: int) -> str:
    """A plain count with thin thousands: `124 439 808`."""
    return f"{number:,}".replace(",", "\u202f")
