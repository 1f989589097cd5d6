"""One query whose output is wrong, and what comes out under other scores."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Wide = NDArray[np.float64]


class Query(Struct, frozen=True):
    """One query whose output is wrong, rows in slot order.

    Attributes:
        logits: Right logarithm of the weights, [heads, rows].
        raw: q·k·scale before softcap and bias, [heads, rows].
        values: [heads, rows, dim].
        output: What the cached lane made, [heads, dim].
        right: What it should be, [heads, dim].
        places: Of the rows.
        atol: What is rounding.
    """

    logits: Wide
    raw: Wide
    values: Wide
    output: Wide
    right: Wide
    places: NDArray[np.int64]
    atol: float

    def only(self, heads: NDArray[np.int64]) -> Query:
        """Some of the heads."""
        return Query(
            self.logits[heads],
            self.raw[heads],
            self.values[heads],
            self.output[heads],
            self.right[heads],
            self.places,
            self.atol,
        )

    @property
    def plain(self) -> bool:
        """Whether softmax of q·k·scale alone gives the right output."""
        return bool(self.misfit(self.raw, self.right).max() <= self.atol)

    def rescaled(self, factor: float) -> Wide:
        """Logits if q·k were that many times as large, and what is added to it the same."""
        return np.asarray(self.logits + (factor - 1) * self.raw, np.float64)

    def misfit(self, logits: Wide, output: Wide | None = None) -> Wide:
        """Largest error of the output (of the cached lane) if these were the logits, [heads]."""
        top = logits - logits.max(axis=-1, keepdims=True)
        weights = np.exp(top)
        weights /= weights.sum(axis=-1, keepdims=True)
        made = np.einsum("hr,hrd->hd", weights, self.values)
        return np.asarray(
            np.abs(made - (self.output if output is None else output)).max(axis=-1), np.float64
        )
