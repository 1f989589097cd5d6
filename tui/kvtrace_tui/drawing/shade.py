"""From values to colour levels, with a range that is printed and stays put from step to step."""

from __future__ import annotations

from math import floor, log10

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats
from kvtrace_tui.desk.cursor import ColourScale

DECADES = 5
_NICE = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)


def nice_ceiling(value: float) -> float:
    """The next round number, so that a range seldom moves when a row is added."""
    if not value > 0 or not np.isfinite(value):
        return 1.0
    power = 10.0 ** floor(log10(value))
    return float(next(n for n in _NICE if n * power >= value * (1 - 1e-9)) * power)


class Shade(Struct, frozen=True):
    """How values become levels.

    Attributes:
        signed: Around zero, or from zero up.
        high: Magnitude of the strongest level.
        kind: Linear, logarithmic over `DECADES` below `high`, or linear up to a percentile.
    """

    signed: bool
    high: float
    kind: ColourScale = ColourScale.LINEAR

    @classmethod
    def of(cls, values: Floats, *, signed: bool, kind: ColourScale) -> Shade:
        """A range for these values, rounded up so that it stays put.

        Args:
            values: Any shape; NaN and Inf are left out.
            signed: Around zero, or from zero up.
            kind: With `PERCENTILE` the strongest level is the 99th percentile of |values|.
        """
        sizes = np.abs(values[np.isfinite(values)])
        if sizes.size == 0:
            return cls(signed, 1.0, kind)
        top = np.percentile(sizes, 99) if kind is ColourScale.PERCENTILE else sizes.max()
        if top == 0:
            top = sizes.max()
        return cls(signed, nice_ceiling(float(top)), kind)

    @property
    def label(self) -> str:
        """The range as printed beside a map."""
        sign = "±" if self.signed else "0…"
        if self.kind is ColourScale.LOG:
            low = _short(self.high / 10**DECADES)
            return f"log {'±' if self.signed else ''}{low}…{_short(self.high)}"
        suffix = " (p99)" if self.kind is ColourScale.PERCENTILE else ""
        return f"{sign}{_short(self.high)}{suffix}"

    @property
    def brief(self) -> str:
        """The greatest value, and how colours grow up to it unless evenly."""
        kinds = {ColourScale.LOG: " log", ColourScale.PERCENTILE: " p99"}
        return f"{'±' if self.signed else '≤'}{_short(self.high)}{kinds.get(self.kind, '')}"

    def levels(self, values: Floats, count: int) -> NDArray[np.uint8]:
        """Levels 0 … count-1; what is not finite becomes `count`.

        Args:
            values: Any shape.
            count: Number of levels. Signed data uses the middle for zero.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            part = self._spread(np.asarray(values, np.float32) / np.float32(self.high))
            if self.signed:
                part = (part + 1) / 2
            scaled = np.fmax(np.fmin(part * count, count - 1), 0)
        return np.where(np.isfinite(values), scaled, count).astype(np.uint8)

    def _spread(self, part: Floats) -> Floats:
        """Values as parts of the range: -1 … 1, or 0 … 1."""
        if self.kind is not ColourScale.LOG:
            return part
        size = np.abs(part)
        logs = np.maximum(np.log10(np.where(size > 0, size, 1e-38)) / DECADES + 1, 0)
        return np.asarray(np.sign(part) * logs)


def _short(value: float) -> str:
    return f"{value:.3g}"
