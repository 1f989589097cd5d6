"""One number a head, for every site: the layer × head grid.

Measures of the weights need a head's whole cache, so a site is asked for all of them in one pass
(`weight_measures`); a caller that draws many steps keeps the answers. Norms and divergence are
cheap. NaN: there is no such head, or nothing to measure.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.heads.attention import after, earlier_occurrences, query_of
from kvtrace.analysis.lanes.compare import head_verdicts
from kvtrace.analysis.rows.origin import attended_rows, tokens_of_rows
from kvtrace.errors import MissingError
from kvtrace.trace import Tensor, Trace
from kvtrace.trace.dtypes import Floats

Grid = NDArray[np.float32]


class Measure(StrEnum):
    """What the grid shows."""

    ENTROPY = "entropy"
    STRONGEST = "strongest weight"
    PREVIOUS = "weight on the previous token"
    FIRST = "weight on the first token"
    INDUCTION = "weight after an earlier occurrence"
    SAME_TOKEN = "weight on the same token"
    SINK = "weight on the sink"
    DIVERGENCE = "difference of lanes"
    QUERY_NORM = "norm of Q"
    OUTPUT_NORM = "norm of the output"

    @property
    def of_weights(self) -> bool:
        """Whether it needs the attention weights."""
        return self in WEIGHT_MEASURES


WEIGHT_MEASURES = (
    Measure.ENTROPY,
    Measure.STRONGEST,
    Measure.PREVIOUS,
    Measure.FIRST,
    Measure.INDUCTION,
    Measure.SAME_TOKEN,
    Measure.SINK,
)


def grid(trace: Trace, number: int, measure: Measure, sequence: int = 0) -> Grid:
    """A measure of every head in the last row of a step, [sites, max heads].

    Raises:
        TraceError: The rows are damaged.
    """
    table = np.full((len(trace.meta.sites), trace.meta.max_heads), np.nan, np.float32)
    if measure is Measure.DIVERGENCE:
        return divergence(trace, number)
    for layer, site in enumerate(trace.meta.sites):
        if measure.of_weights:
            row = weight_measures(trace, number, layer, sequence)[measure]
        else:
            row = norm(trace, number, layer, measure, sequence)
        table[layer, : site.num_heads] = row
    return table


def weight_measures(
    trace: Trace,
    number: int,
    layer: int,
    sequence: int = 0,
    query: int = -1,
    *,
    keys: Floats | None = None,
) -> dict[Measure, NDArray[np.float32]]:
    """All measures of one site's weights for one query row, each [heads]; NaN if it did not attend.

    Args:
        trace: The trace.
        number: Step.
        layer: Site.
        sequence: Row of the batch.
        query: Row of the step; -1 is the last.
        keys: K rows, [kv_heads, seq, key_dim], from a caller that has them.

    Raises:
        TraceError: The rows are damaged.
    """
    heads = trace.site(layer).num_heads
    try:
        derived = trace.weights(number, layer, None, sequence, query, keys=keys)
        tokens = tokens_of_rows(trace, number, layer, sequence)
        positions = attended_rows(trace, number, layer, sequence).positions
    except MissingError:
        return {one: np.full(heads, np.nan, np.float32) for one in WEIGHT_MEASURES}
    weights = derived.weights[:, 0]
    token, position = query_of(trace, number, layer, sequence, query)
    earlier = earlier_occurrences(tokens, positions, token, position)
    absent = np.full(heads, np.nan, np.float32)
    # an encoder's rows stand in another text: none of them is before the token that asks
    beside = position < 0 or trace.site(layer).kind == "cross"
    previous = absent if beside else weights[:, positions == position - 1].sum(axis=1)
    same = induced = absent
    if earlier is not None:
        same = weights[:, earlier].sum(axis=1)
        induced = weights[:, after(positions, earlier)].sum(axis=1)
    found = {
        Measure.ENTROPY: entropies(weights),
        Measure.STRONGEST: weights.max(axis=1, initial=0),
        Measure.PREVIOUS: previous,
        Measure.FIRST: weights[:, positions == 0].sum(axis=1),
        Measure.INDUCTION: induced,
        Measure.SAME_TOKEN: same,
        Measure.SINK: derived.sink_share[:, 0],
    }
    return {one: np.asarray(values, np.float32) for one, values in found.items()}


def entropies(weights: Floats) -> Floats:
    """Shannon entropy in bits of each row, normalised to sum to 1, [heads]; NaN where 0."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = weights / total
        terms = np.where(shares > 0, shares * np.log2(shares), 0)
        summed = np.where(total[:, 0] > 0, -terms.sum(axis=1) + 0.0, np.nan)
    return np.asarray(summed, np.float32)


def norm(
    trace: Trace, number: int, layer: int, measure: Measure, sequence: int = 0, query: int = -1
) -> NDArray[np.float32]:
    """Euclidean norm of one row of Q or of the output, [heads]; NaN where not recorded."""
    tensor = Tensor.QUERIES if measure is Measure.QUERY_NORM else Tensor.OUTPUT
    try:
        rows = trace.rows(number, layer, tensor, sequence)
    except MissingError:
        rows = None
    if rows is None or rows.shape[1] == 0:
        return np.full(trace.site(layer).num_heads, np.nan, np.float32)
    row = rows[:, query % rows.shape[1]]
    return np.asarray(np.sqrt(np.square(row, dtype=np.float64).sum(axis=1)), np.float32)


def divergence(trace: Trace, number: int, lane: str = "recomputed") -> Grid:
    """Largest relative difference of the lanes over q, k, v and output, [sites, max heads].

    The rows that are new in the step; K and V count for every query head that reads them. NaN
    where not compared.
    """
    table = np.full((len(trace.meta.sites), trace.meta.max_heads), np.nan, np.float32)
    relative = head_verdicts(trace, number, lane)
    if relative is None:
        return table
    for layer, site in enumerate(trace.meta.sites):
        group = site.num_heads // site.num_kv_heads
        kv_heads = np.arange(site.num_heads) // group
        own = relative[layer][[Tensor.QUERIES, Tensor.OUTPUT], : site.num_heads]
        read = relative[layer][[Tensor.KEYS, Tensor.VALUES]][:, kv_heads]
        table[layer, : site.num_heads] = np.fmax.reduce(np.concatenate([own, read]), axis=0)
    return table
