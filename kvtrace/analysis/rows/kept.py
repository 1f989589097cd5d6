"""What the cache really holds for a layer after a step, where that is not what was attended to.

Rows of a window that are let go after the step are gone; where K and V are expanded from latents,
the latents and the rotary keys are what is kept.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from kvtrace.analysis.nature import latents_of
from kvtrace.analysis.rows.origin import Rows
from kvtrace.trace import CacheLayer, Tensor, Trace, dtypes
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.step import Runs


class CacheContents(Struct, frozen=True):
    """What is held for one sequence of a layer.

    Attributes:
        store: The cache layer that holds it.
        rows: Its rows, in slot order.
    """

    store: CacheLayer
    rows: Rows
    _runs: Runs

    @property
    def latent(self) -> bool:
        """Whether K stands for the latent and V for the rotary key, one for all heads."""
        return self.store.kind == "latent"

    def values(self, trace: Trace, tensor: Tensor, kv_head: int) -> Floats:
        """Rows of a kv head, [rows, dim]; of the one there is, for latents.

        Raises:
            TraceError: The rows are damaged.
        """
        store = self.store
        own = 0 if self.latent else kv_head
        parts = [
            dtypes.widen(
                trace.source.cells(store.index, tensor, run.cell, run.count, own), store.dtype
            )[0]
            for run in self._runs
        ]
        empty = np.zeros((0, store.dim(tensor)), np.float32)
        return np.concatenate(parts) if parts else empty


def kept(trace: Trace, number: int, layer: int, sequence: int = 0) -> CacheContents | None:
    """What the cache holds for a layer after a step; None: nothing.

    Raises:
        MissingError: There is no such step or layer.
    """
    store = latents_of(trace, layer) or trace.cache_layer(layer)
    group = trace.step(number).cache_step(store.index)
    if not store.held or store.kind == "state" or group is None or sequence >= len(group.kept):
        return None
    runs = group.kept[sequence]
    return CacheContents(store, Rows.of(runs), runs)
