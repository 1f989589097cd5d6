"""What kind of attention a layer is, and what the rows are that it reads, in words."""

from __future__ import annotations

import numpy as np

from kvtrace.errors import KvtraceError
from kvtrace.trace import CacheLayer, Site, Trace

_TOLD = 3
"""Differences between neighbouring rows that must agree before a bias counts as linear."""


def latents_of(trace: Trace, layer: int) -> CacheLayer | None:
    """The cache layer that holds the latents a site's rows are expanded from; None without.

    Rows of the same shape are no latents: they were put together with others, or changed.
    """
    site, made = trace.site(layer), trace.cache_layer(layer)
    if made.kind != "derived":
        return None
    shape = made.num_kv_heads, made.key_dim, made.value_dim
    return next(
        (
            store
            for store in trace.meta.cache_layers
            if store.kind == "latent"
            and store.layer == site.layer
            and (store.num_kv_heads, store.key_dim, store.value_dim) != shape
        ),
        None,
    )


def rows_are(trace: Trace, layer: int) -> str:
    """What K and V of a layer are: "cache", "cache of L2", "from latents", "not cached" etc."""
    site, store = trace.site(layer), trace.cache_layer(layer)
    if site.kind == "encoder":
        return "of the encoder itself"
    if site.kind == "cross":
        return "of the encoder"
    if site.source == "shared" and site.shared_from is not None:
        return f"cache of L{site.shared_from}"
    if store.kind == "derived":
        made = "copied from another layer" if site.source == "cache" else "derived"
        return "from latents" if latents_of(trace, layer) is not None else made
    if site.source == "uncached" or store.kind == "uncached":
        return "not cached"
    return "cache"


def attention_is(trace: Trace, layer: int, number: int | None = None) -> tuple[str, ...]:
    """What is particular about a layer's attention, a few words each; often nothing.

    Args:
        trace: The trace.
        layer: Site.
        number: A step, to say what its bias is and how many rows a window has let go.
    """
    site = trace.site(layer)
    found = [
        {"cross": "cross-attention", "encoder": "encoder attention"}.get(site.kind, ""),
        _latent(trace, layer) or _groups(site, trace.cache_layer(layer)),
        _window(trace, layer, number),
        _kept_as(trace, layer),
        "learned sinks" if site.sinks else "",
        f"softcap {site.softcap:g}" if site.softcap else "",
        "" if site.rule == "softmax" else f"{site.rule} of each score, no softmax",
        "" if number is None else _bias(trace, number, layer),
    ]
    return tuple(filter(None, found))


def _groups(site: Site, store: CacheLayer) -> str:
    """How query heads share kv heads, unless each has its own.

    Rows that are keys and values at once may be latents, of which no rotary key tells.
    """
    heads, kv_heads = site.num_heads, site.num_kv_heads
    if kv_heads == heads:
        return ""
    if kv_heads == 1 and store.shared_dim == store.key_dim == store.value_dim:
        return f"MQA or absorbed MLA: {heads} heads on 1 row, its K and V in one"
    if kv_heads == 1:
        return f"MQA: {heads} heads on 1 kv head"
    return f"GQA: {heads} heads on {kv_heads} kv heads"


def _latent(trace: Trace, layer: int) -> str:
    """What one token leaves in the cache of multi-head latent attention."""
    store = latents_of(trace, layer)
    if store is not None:
        beside = f" + rotary {store.value_dim}" if store.value_dim else ", no rotary key"
        return f"MLA: latent {store.key_dim}{beside}"
    store = trace.cache_layer(layer)
    if not store.latents:
        return ""
    if store.shared_dim:
        rotary = store.key_dim - store.shared_dim
        beside = f" + rotary {rotary}" if rotary else ", no rotary key"
        return f"MLA: latent {store.shared_dim}{beside}, absorbed"
    return f"MLA: latent {store.key_dim} + {store.value_dim}"


def _window(trace: Trace, layer: int, number: int | None) -> str:
    """The window, and how much of the sequence has left the cache."""
    site, store = trace.site(layer), trace.cache_layer(layer)
    window = site.window or (store.window if store.kind == "sliding" else None)
    if not window:
        return ""
    chunked = number is not None and _chunked(trace, number, layer, window)
    words = f"{'chunks of' if chunked else 'sliding window'} {window}"
    if store.kind != "sliding":
        return f"{words}, all rows kept" if store.kind == "dynamic" else words
    gone = 0 if number is None else _gone(trace, number, layer)
    return f"{words}, {gone} evicted" if gone else words


def _chunked(trace: Trace, number: int, layer: int, window: int) -> bool:
    """Whether what is seen begins anew every `window` positions, instead of moving along.

    The rules of its mask say so, where it has any. Of a mask kept in full, a query in a chunk's
    last position sees as much either way: then its neighbours tell.
    """
    for near in (number, number - 1, number + 1):
        try:
            mask = trace.site_step(near, layer).mask
            if mask.chunk is not None or mask.window is not None:
                return mask.chunk is not None
            seen = trace.visible(near, layer, query=-1)[0, -1]
            position = trace.step(near).positions[0][-1]
        except (KvtraceError, IndexError):
            continue
        if position < window:
            continue
        if int(seen.sum()) != window:
            return int(seen.sum()) == position % window + 1
    return False


def _gone(trace: Trace, number: int, layer: int) -> int:
    """Positions of the longest sequence that are no longer held after a step."""
    try:
        positions = trace.step(number).positions
        held = trace.cache_step(number, layer).length_after
    except KvtraceError:
        return 0
    return max(max((row[-1] + 1 for row in positions if row), default=0) - held, 0)


def _kept_as(trace: Trace, layer: int) -> str:
    """Whose rows it reads, or how they are kept, where that is not a cache that grows."""
    site, store = trace.site(layer), trace.cache_layer(layer)
    rows = rows_are(trace, layer)
    if site.source == "shared" and site.shared_from is not None and site.kind == "self":
        return f"shares K, V of L{site.shared_from}"
    if rows != "cache" and site.kind == "self" and latents_of(trace, layer) is None:
        return f"K, V {rows}"
    usual = ("dynamic", "sliding", "latent", "cross")
    return f"{store.kind} cache" if store.held and store.kind not in usual else ""


def readers(trace: Trace, layer: int) -> tuple[int, ...]:
    """Other layers that read the rows this layer reads."""
    reads = trace.site(layer).reads
    return tuple(
        site.index for site in trace.meta.sites if site.reads == reads and site.index != layer
    )


def _bias(trace: Trace, number: int, layer: int) -> str:
    """Whether something is added to the scores, and whether it falls with the distance alone.

    ALiBi (Press et al., 2021) adds slope · (position of the key − position of the query).
    """
    try:
        if not trace.site_step(number, layer).mask.bias:
            return ""
    except KvtraceError:
        return ""
    try:
        bias = trace.bias(number, layer, query=-1)
    except KvtraceError:
        bias = None
    if bias is None:
        return "additive bias"
    if not np.any(bias):
        return ""  # zeros, as cross-attention of T5 is handed
    slopes = np.diff(np.asarray(bias[:, -1], np.float64), axis=-1)
    if slopes.shape[-1] < _TOLD or len(slopes) != trace.site(layer).num_heads:
        return "additive bias"
    even = np.allclose(slopes, slopes[:, :1], rtol=1e-3, atol=1e-6)
    falling = (slopes[:, 0] > 0).all() and len(set(slopes[:, 0].tolist())) > 1
    return "ALiBi bias" if even and falling else "additive bias"
