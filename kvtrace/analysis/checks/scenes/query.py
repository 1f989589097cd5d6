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
        sinks: Scores of learned sinks, which take a share and give nothing, [heads]; None: there
            are none.
    """

    logits: Wide
    raw: Wide
    values: Wide
    output: Wide
    right: Wide
    places: NDArray[np.int64]
    atol: float
    sinks: Wide | None = None

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
            None if self.sinks is None else self.sinks[heads],
        )

    @property
    def plain(self) -> bool:
        """Whether softmax of q·k·scale alone gives the right output."""
        return self.sinks is None and bool(self.misfit(self.raw, self.right).max() <= self.atol)

    def rescaled(self, factor: float) -> Wide:
        """Logits if q·k were that many times as large, and what is added to it the same."""
        return np.asarray(self.logits + (factor - 1) * self.raw, np.float64)

    def misfit(self, logits: Wide, output: Wide | None = None) -> Wide:
        """Largest error of the output (of the cached lane) if these were the logits, [heads].

        Beside a sink they are on the level of the right ones.
        """
        rows = logits if self.sinks is None else np.concatenate((logits, self._share), axis=-1)
        weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        made = np.einsum("hr,hrd->hd", weights[..., : logits.shape[-1]], self.values)
        return np.asarray(
            np.abs(made - (self.output if output is None else output)).max(axis=-1), np.float64
        )

    def misfit_of_scores(self, scores: Wide, output: Wide | None = None) -> Wide:
        """The same of scores as they are: a sink's own is not moved along with them."""
        if self.sinks is None:
            return self.misfit(scores, output)
        return self.misfit(scores - self.sinks[:, None] + self._share, output)

    @property
    def _share(self) -> Wide:
        """Logarithm of the sinks' right shares, [heads, 1]."""
        left = 1 - np.exp(self.logits).sum(axis=-1, keepdims=True)
        return np.asarray(np.log(np.maximum(left, 1e-30)), np.float64)
