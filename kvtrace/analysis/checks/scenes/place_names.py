"""How people call a place that attends: "layer 3", "decoder layer 1 cross-attention".

A trace numbers its sites as they were met; that is not the layer of the model where an encoder or
a layer without attention comes before, or where a call is met again in another shape.
"""

from __future__ import annotations

from kvtrace.trace import Meta

_ATTENTION = {"self": "self-attention", "cross": "cross-attention", "encoder": "self-attention"}


def met_first(meta: Meta, index: int) -> int:
    """The site of the same place, in the shape in which it was met first.

    Args:
        meta: Of the trace.
        index: Of the site.
    """
    if not 0 <= index < len(meta.sites):
        return index
    site = meta.sites[index]
    place = (site.module, site.call, site.layer, site.kind)
    same = (one for one in meta.sites if (one.module, one.call, one.layer, one.kind) == place)
    return next(same).index


def spoken(meta: Meta, index: int) -> str:
    """A site as the model's author calls it; its number on the screen where that is another.

    Args:
        meta: Of the trace.
        index: Of the site.
    """
    if not 0 <= index < len(meta.sites):
        return f"layer {index}"
    site = meta.sites[index]
    name = f"layer {site.layer}"
    if any(one.kind != "self" for one in meta.sites):
        stack = "encoder" if site.kind == "encoder" else "decoder"
        name = f"{stack} layer {site.layer} {_ATTENTION.get(site.kind, site.kind)}"
    beside = [one for one in meta.sites if (one.kind, one.layer) == (site.kind, site.layer)]
    if len({one.call for one in beside if one.module == site.module}) > 1:
        name += f", call {site.call}"
    return name if site.index == site.layer else f"{name} (L{site.index} on the screen)"
