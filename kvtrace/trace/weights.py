"""Attention weights, derived from what was recorded.

weights = softmax(softcap(q·kᵀ·scale) + bias + mask, with the sink as one more column), as in
"Attention Is All You Need" (Vaswani et al., 2017, eq. 1), with Gemma-2's softcap and gpt-oss'
sinks; or, where a site says so, the sigmoid of each score (Ramapuram et al., 2024, "Theory,
Analysis, and Best Practices for Sigmoid Self-Attention"). Stored they would be many times the rest
of a trace; derived from q, k and the mask they equal what the module calculated, up to float32
rounding.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats
from kvtrace.trace.meta import Site

_ANY_NUMBER = np.errstate(over="ignore", invalid="ignore")
"""What a model computed may hold infinities and NaN; they are shown, not warned of."""


class Weights(Struct, frozen=True):
    """Attention weights of one site in one step.

    Attributes:
        weights: [heads, new, seq]; a row sums to 1 - sink_share, those of a sigmoid to anything.
        sink_share: Weight on the learned sink, [heads, new]; zeros without sinks.
    """

    weights: Floats
    sink_share: Floats


@_ANY_NUMBER
def scores(site: Site, queries: Floats, keys: Floats, bias: Floats | None) -> Floats:
    """Scores before the mask.

    Args:
        site: Gives scale and softcap.
        queries: [heads, new, key_dim].
        keys: [kv_heads, seq, key_dim]; query head h reads kv head h // (heads // kv_heads).
        bias: Additive term that broadcasts to [heads, new, seq], or None.

    Returns:
        [heads, new, seq].
    """
    heads, new, dim = queries.shape
    kv_heads, seq, _ = keys.shape
    grouped = queries.reshape(kv_heads, heads // kv_heads * new, dim)
    product = (grouped @ keys.transpose(0, 2, 1)).reshape(heads, new, seq) * site.scale
    if site.softcap:
        product = site.softcap * np.tanh(product / site.softcap)
    return product if bias is None else product + bias


@_ANY_NUMBER
def derive(
    site: Site,
    queries: Floats,
    keys: Floats,
    visible: NDArray[np.bool_],
    bias: Floats | None = None,
) -> Weights:
    """Attention weights of some query heads over their kv heads.

    Args:
        site: Gives scale, softcap, rule and sinks; sinks are used when all heads are given.
        queries: [heads, new, key_dim].
        keys: [kv_heads, seq, key_dim].
        visible: Broadcasts to [heads, new, seq]. A query that sees nothing gets zero weights.
        bias: Broadcasts to [heads, new, seq].
    """
    logits = np.where(visible, scores(site, queries, keys, bias), -np.inf)
    if site.rule == "sigmoid":
        return Weights(1 / (1 + np.exp(-logits)), np.zeros(logits.shape[:2], logits.dtype))
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    sinks = None
    if len(site.sinks) == queries.shape[0]:
        sinks = np.asarray(site.sinks, logits.dtype)[:, None, None]
        top = np.maximum(top, sinks)
    top = np.where(np.isneginf(top), 0, top)
    exponentials = np.exp(logits - top)
    total = exponentials.sum(axis=-1, keepdims=True)
    sink = np.zeros_like(total) if sinks is None else np.exp(sinks - top)
    total = total + sink
    total = np.where(total == 0, 1, total)
    return Weights(exponentials / total, (sink / total)[..., 0])


def of_head(
    head: int, site: Site, visible: NDArray[np.bool_], bias: Floats | None
) -> tuple[Site, NDArray[np.bool_], Floats | None]:
    """What one query head alone has of its site's sinks, and of a mask and a bias.

    Args:
        head: Query head.
        site: Of all heads.
        visible: [1 or heads, new, seq]; one for all heads stays as it is.
        bias: The same.
    """
    one = slice(head, head + 1)
    visible = visible[one] if visible.shape[0] > 1 else visible
    bias = bias[one] if bias is not None and bias.shape[0] > 1 else bias
    return replace(site, sinks=site.sinks[one]), visible, bias


@_ANY_NUMBER
def mix(weights: Floats, values: Floats) -> Floats:
    """weights·v: the attention output before the output projection, [heads, new, value_dim].

    Args:
        weights: [heads, new, seq].
        values: [kv_heads, seq, value_dim].
    """
    heads, new, seq = weights.shape
    kv_heads = values.shape[0]
    grouped = weights.reshape(kv_heads, heads // kv_heads * new, seq)
    return (grouped @ values).reshape(heads, new, -1)
