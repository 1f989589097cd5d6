"""Bytes of cache rows that a step moved, from its cells and runs."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace.trace import CacheLayer, CacheStep, dtypes
from kvtrace.trace.step import Runs


def row_bytes(layer: CacheLayer) -> int:
    """Bytes of one row of K with its row of V, all kv heads."""
    features = layer.num_kv_heads * (layer.key_dim + layer.value_dim)
    return features * dtypes.itemsize(layer.dtype)


def cache_traffic(
    layers: Sequence[CacheLayer], groups: Sequence[CacheStep], *, states: bool = False
) -> tuple[int, int]:
    """Bytes read from and written to the cache by one step.

    Rows that the step itself wrote are not read from the cache; rows that several sites share are
    read once; rows made anew from other rows (`derived`) are no cache memory.

    Args:
        layers: `Meta.cache_layers`.
        groups: `Step.caches`.
        states: The step also read and wrote each recurrent state.
    """
    read = written = 0
    for group in groups:
        held = [layers[index] for index in group.layers if layers[index].held]
        row = sum(row_bytes(layer) for layer in held if layer.kind != "state")
        read += row * sum(_earlier(runs, group.first_cell) for runs in group.attended)
        written += row * group.rows * len(group.attended)
    if states:
        state = sum(layer.state_bytes for layer in layers if layer.kind == "state")
        read, written = read + state, written + state
    return read, written


def _earlier(runs: Runs, first: int) -> int:
    """Rows of the runs that were written before cell `first`."""
    return sum(min(run.count, max(0, first - run.cell)) for run in runs)
