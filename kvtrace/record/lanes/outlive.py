"""Whether the rows of a forward's caches outlive it.

Some models make a cache in every forward and hand it to nobody: transformers' XLM does. Their steps
feed all tokens again, and rightly so: there is no cache that could be used.
"""

from __future__ import annotations

from msgspec.structs import replace

from kvtrace.record.cache.own.holders import holders
from kvtrace.record.capture.forward import Forward
from kvtrace.trace import Meta, Trace

_NEVER_KEPT = "uncached"


def nobody_holds(forward: Forward) -> bool:
    """Whether neither the model, nor an argument, nor the result reaches the rows of any cache."""
    held = [one.held_keys for one in forward.updates]
    places = {one.untyped_storage().data_ptr() for one in held if one is not None}
    if not places or any(one is None for one in held):
        return False
    found = holders(forward.model, forward.arguments, forward.result)
    return not any(one.tensor.untyped_storage().data_ptr() in places for one in found)


def never_kept(meta: Meta, trace: Trace) -> Meta:
    """META of caches that nobody holds, unless a step went on from one after all."""
    if any(step.parent is not None for step in trace):
        return meta
    layers = tuple(replace(one, kind=_NEVER_KEPT) for one in meta.cache_layers)
    return replace(meta, cache_layers=layers)
