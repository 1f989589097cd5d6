"""Where one head looks: its weights over the rows, and what they say about the head."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.rows.origin import UNKNOWN, attended_rows, tokens_of_rows
from kvtrace.trace import Trace
from kvtrace.trace.dtypes import Floats


class Attention(Struct, frozen=True):
    """One query row of one head; every array is [seq], in slot order.

    Attributes:
        weights: Exact; they and `sink_share` sum to 1.
        seen: Rows that the mask lets the query look at.
        tokens: Token id of each row; -1: unknown.
        positions, slots: Of each row; a negative position is padding.
        query_token, query_position: Of the row that asks.
        sink_share: Weight on the learned sink; 0 without one.
        entropy: Of the weights over rows, in bits: 0 looks at one row, log2 of the seen ones at
            all alike.
        induction: Weight on the rows just after an earlier occurrence of the asking token; NaN
            where it is not known which tokens the rows are.
        same_token: Weight on earlier occurrences of the asking token itself, or NaN.
    """

    weights: Floats
    seen: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    query_token: int
    query_position: int
    sink_share: float
    entropy: float
    induction: float
    same_token: float

    def top(self, count: int) -> list[int]:
        """The rows with the largest weights, largest first; ties in slot order."""
        return top_rows(self.weights, count)


def attention(
    trace: Trace,
    number: int,
    layer: int,
    head: int,
    sequence: int = 0,
    query: int = -1,
    *,
    keys: Floats | None = None,
) -> Attention:
    """Where one head of one query row looks.

    Args:
        trace: The trace.
        number: Step.
        layer: Site.
        head: Query head.
        sequence: Row of the batch.
        query: Row of the step; -1 is the last, the one that decides the next token.
        keys: The head's K rows, [seq, key_dim], from a caller that has them.

    Raises:
        MissingError: The site did not attend in this step, or its queries were not recorded.
        TraceError: The rows are damaged.
    """
    given = None if keys is None else keys[None]
    derived = trace.weights(number, layer, head, sequence, query, keys=given)
    weights = derived.weights[0, 0]
    tokens = tokens_of_rows(trace, number, layer, sequence)
    rows = attended_rows(trace, number, layer, sequence)
    own_token, own_position = query_of(trace, number, layer, sequence, query)
    seen = trace.visible(number, layer, sequence, query)
    earlier = earlier_occurrences(tokens, rows.positions, own_token, own_position)
    induced = None if earlier is None else after(rows.positions, earlier)
    return Attention(
        weights=weights,
        seen=np.broadcast_to(seen[head if len(seen) > 1 else 0, 0], weights.shape),
        tokens=tokens,
        positions=rows.positions,
        slots=rows.slots,
        query_token=own_token,
        query_position=own_position,
        sink_share=float(derived.sink_share[0, 0]),
        entropy=entropy(weights),
        induction=float("nan") if induced is None else float(weights[induced].sum()),
        same_token=float("nan") if earlier is None else float(weights[earlier].sum()),
    )


def query_of(trace: Trace, number: int, layer: int, sequence: int, query: int) -> tuple[int, int]:
    """Token and position of a query row; -1 where the site's rows are not the step's tokens."""
    step = trace.step(number)
    rows = step.new_at(trace.site(layer).index)
    if rows != step.new or not step.new:
        return UNKNOWN, UNKNOWN
    at = query % step.new
    return step.tokens[sequence][at], step.positions[sequence][at]


def top_rows(weights: Floats, count: int) -> list[int]:
    """Indices of the largest weights, largest first; ties by index, NaN last."""
    count = min(max(count, 0), weights.size)
    if count == 0:
        return []
    ranked = np.where(np.isnan(weights), -np.inf, weights)
    candidates = np.arange(ranked.size)
    if count < ranked.size:
        least = np.partition(ranked, ranked.size - count)[ranked.size - count]
        candidates = np.flatnonzero(ranked >= least)
    order = np.lexsort((candidates, -ranked[candidates]))
    return [int(index) for index in candidates[order][:count]]


def entropy(weights: Floats) -> float:
    """Shannon entropy in bits of the weights over rows, normalised to sum to 1; NaN of none."""
    total = float(weights.sum())
    if not total > 0:
        return float("nan")
    shares = weights[weights > 0].astype(np.float64) / total
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def earlier_occurrences(
    tokens: NDArray[np.int64], positions: NDArray[np.int64], token: int, position: int
) -> NDArray[np.bool_] | None:
    """Rows that hold the same token at an earlier position, [seq]; None: tokens are not known."""
    if token == UNKNOWN or (tokens == UNKNOWN).all():
        return None
    found: NDArray[np.bool_] = (tokens == token) & (positions < position) & (positions >= 0)
    return found


def after(positions: NDArray[np.int64], earlier: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows whose position is one more than a marked row's: where an induction head looks.

    Olsson et al., 2022, "In-context Learning and Induction Heads".
    """
    return np.isin(positions, positions[earlier] + 1)
