"""A trace of a layer that caches latents."""

import numpy as np
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.trace import CacheLayer, Tensor


def latent_trace():
    """A layer whose rows are expanded from latents [rows, 6] and rotary keys [rows, 2]."""
    trace = synthetic_trace(Shape(layers=1))
    meta = trace.meta
    store = CacheLayer(1, 0, "latent", 1, 6, 2)
    derived = replace(meta.cache_layers[0], kind="derived", layer=-1)
    site = replace(meta.sites[0], source="derived")
    trace.source.meta = replace(meta, sites=(site,), cache_layers=(derived, store))
    for number, step in list(trace.source.steps.items()):
        group = replace(step.caches[0], layers=(1,))
        trace.source.steps[number] = replace(step, caches=(step.caches[0], group))
    rng = np.random.default_rng(0)
    for tensor, dim in ((Tensor.KEYS, 6), (Tensor.VALUES, 2)):
        rows = rng.standard_normal((1, 11, dim)).astype(np.float32)
        trace.source.cell_tensors[1, tensor] = rows
    return trace
