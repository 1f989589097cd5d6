"""Where a model attends and what it caches, as lines of text: what is alike is told once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from kvtrace import units
from kvtrace.tables import table
from kvtrace.text import safe
from kvtrace.trace import CacheLayer, Site


def sites(found: Sequence[Site]) -> list[str]:
    """Sites of the same shape in consecutive rows are told once."""
    rows = []
    for shape, members in groupby(found, key=_site_shape):
        group = list(members)
        rows.append(
            [span(group[0].index, group[-1].index), safe(group[0].module) or "the model", *shape]
        )
    return table([["layer", "module", "heads", "K, V dim", "scale", "source", "more"], *rows])


def _site_shape(site: Site) -> tuple[str, ...]:
    more = [
        site.kind if site.kind != "self" else "",
        f"softcap {site.softcap:g}" if site.softcap else "",
        f"weights by {safe(site.rule, 20)}" if site.rule != "softmax" else "",
        f"window {site.window}" if site.window else "",
        "learned sinks" if site.sinks else "",
        f"seen at level {site.level}" if site.level != 1 else "",
        site.lines,
        site.dtype if site.dtype != "float32" else "",
    ]
    heads = f"{site.num_heads}"
    if site.num_kv_heads != site.num_heads:
        heads += f" on {site.num_kv_heads} kv heads"
    source = site.source if site.shared_from is None else f"shared from {site.shared_from}"
    dims = f"{site.key_dim}, {site.value_dim}"
    return heads, dims, f"{site.scale:.4g}", safe(source), safe(", ".join(filter(None, more)))


def caches(layers: Sequence[CacheLayer]) -> list[str]:
    """Cache layers of the same shape are told once, and what holds their rows."""
    rows = []
    for shape, members in groupby(layers, key=_cache_shape):
        group = list(members)
        rows.append([span(group[0].index, group[-1].index), *shape])
    return [
        *table([["cache", "kind", "kv heads", "K, V dim", "dtype", "more"], *rows]),
        *_held(layers),
    ]


def _held(layers: Sequence[CacheLayer]) -> list[str]:
    """What of a model's own holds the rows; layers that differ in numbers alone are told once."""
    alike: dict[str, list[CacheLayer]] = {}
    for layer in layers:
        if layer.where or layer.remark:
            name = re.sub(r"\d+", "0", layer.where) + layer.remark
            alike.setdefault(name, []).append(layer)
    lines = []
    for group in alike.values():
        first, more = group[0], f"; {len(group) - 1} more like it" if len(group) > 1 else ""
        text = "; ".join(filter(None, (first.where, first.remark)))
        held = "held in " if first.where else ""
        lines.append(f"cache {first.index}: {held}{safe(text, 500)}{more}")
    return lines


def _cache_shape(layer: CacheLayer) -> tuple[str, ...]:
    more = [
        f"window {layer.window}" if layer.window else "",
        f"capacity {layer.capacity}" if layer.capacity and not layer.block_slots else "",
        f"pool of {layer.capacity} slots in blocks of {layer.block_slots}"
        if layer.block_slots
        else "",
        f"state {units.byte_size(layer.state_bytes)}" if layer.state_bytes else "",
    ]
    dims = f"{layer.key_dim}, {layer.value_dim}"
    kind, dtype = safe(layer.kind), safe(layer.dtype)
    return kind, str(layer.num_kv_heads), dims, dtype, ", ".join(filter(None, more))


def span(first: int, last: int) -> str:
    """Consecutive numbers, as people write them."""
    return str(first) if first == last else f"{first}–{last}"
