"""What kind of attention a layer is, and what the rows are that it reads, in words."""

from __future__ import annotations

from kvtrace.errors import KvtraceError
from kvtrace.trace import CacheLayer, Trace


def latents_of(trace: Trace, layer: int) -> CacheLayer | None:
    """The cache layer that holds the latents a site's rows are expanded from; None without."""
    site = trace.site(layer)
    if trace.cache_layer(layer).kind != "derived":
        return None
    return next(
        (
            store
            for store in trace.meta.cache_layers
            if store.kind == "latent" and store.layer == site.layer
        ),
        None,
    )


def rows_are(trace: Trace, layer: int) -> str:
    """What K and V of a layer are: "cache", "cache of L2", "from latents", "not cached"."""
    site, store = trace.site(layer), trace.cache_layer(layer)
    if site.kind == "encoder":
        return "of the encoder itself"
    if site.kind == "cross":
        return "of the encoder"
    if site.source == "shared" and site.shared_from is not None:
        return f"cache of L{site.shared_from}"
    if store.kind == "derived":
        return "from latents" if latents_of(trace, layer) is not None else "derived"
    if site.source == "uncached" or store.kind == "uncached":
        return "not cached"
    return "cache"


def attention_is(trace: Trace, layer: int, number: int | None = None) -> tuple[str, ...]:
    """What is particular about a layer's attention, a few words each; often nothing.

    Args:
        trace: The trace.
        layer: Site.
        number: A step, to say whether it had an additive bias.
    """
    site, store = trace.site(layer), trace.cache_layer(layer)
    rows = rows_are(trace, layer)
    found = [
        {"cross": "cross-attention", "encoder": "encoder attention"}.get(site.kind, ""),
        f"{site.num_heads} heads on {site.num_kv_heads} kv heads"
        if site.num_kv_heads not in (site.num_heads, 1)
        else "",
        f"{site.num_heads} heads on 1 kv head" if 1 == site.num_kv_heads < site.num_heads else "",
        f"window {site.window}" if site.window else "",
        f"{store.kind} cache" if store.held and store.kind not in ("dynamic", "sliding") else "",
        f"K, V {rows}" if rows != "cache" and site.kind == "self" else "",
        "learned sinks" if site.sinks else "",
        f"softcap {site.softcap:g}" if site.softcap else "",
        "additive bias" if number is not None and _biased(trace, number, layer) else "",
    ]
    return tuple(filter(None, found))


def readers(trace: Trace, layer: int) -> tuple[int, ...]:
    """Other layers that read the rows this layer reads."""
    reads = trace.site(layer).reads
    return tuple(
        site.index for site in trace.meta.sites if site.reads == reads and site.index != layer
    )


def _biased(trace: Trace, number: int, layer: int) -> bool:
    try:
        return trace.site_step(number, layer).mask.bias
    except KvtraceError:
        return False
