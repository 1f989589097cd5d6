"""How much memory the cache takes, where, and what it would take in other shapes.

Counts rows: bytes = rows × kv heads × (key_dim + value_dim) × itemsize, features that K and V
share once. What an allocator or a quantised layout adds is only in `Cost.cache_bytes`, which was
measured on the live tensors.
"""

from __future__ import annotations

from msgspec import Struct

from kvtrace.analysis.cost.extent import extent
from kvtrace.analysis.rows.changes import row_count
from kvtrace.trace import CacheLayer, CacheStep, Step, Trace
from kvtrace.trace.dtypes import itemsize


class LayerMemory(Struct, frozen=True):
    """One cache layer after a step.

    Attributes:
        cache_layer: Index into `Meta.cache_layers`.
        rows: Held per sequence, the longest.
        slots: Allocated per sequence; as many as rows unless allocated up front.
        row_bytes: Of one K row and its V row, all kv heads; 0 for recurrent layers.
        held_bytes: Rows (or recurrent state) of all sequences.
    """

    cache_layer: int
    rows: int
    slots: int
    row_bytes: int
    held_bytes: int


class CacheMemory(Struct, frozen=True):
    """The whole cache after a step.

    Attributes:
        layers: Those that hold something.
        measured_bytes: The live tensors, as recorded.
        token_bytes: What one more token adds, all layers, one sequence.
        state_bytes: Recurrent states, constant in length.
        mha, mqa: All heads their own K,V; one K,V for all: the same rows otherwise.
        unshared: If no layer took over another's rows.
        unwindowed: If every layer kept every row.
    """

    layers: tuple[LayerMemory, ...]
    measured_bytes: int
    token_bytes: int
    state_bytes: int
    mha: int
    mqa: int
    unshared: int
    unwindowed: int

    @property
    def held_bytes(self) -> int:
        """Rows and states, counted."""
        return sum(layer.held_bytes for layer in self.layers)


def row_bytes(layer: CacheLayer) -> int:
    """Bytes of one K row and its V row over all kv heads; 0 for recurrent layers."""
    if layer.kind == "state":
        return 0
    return layer.row_bytes


def cache_memory(trace: Trace, number: int) -> CacheMemory:
    """Memory of the cache after a step, by layer, and what-ifs.

    Layers that a step did not touch are not counted: what they hold is not in it.

    Raises:
        MissingError: There is no such step.
    """
    step = trace.step(number)
    layers = tuple(
        found
        for layer in trace.meta.cache_layers
        if layer.held and (found := _layer(layer, step.cache_step(layer.index), step.num_sequences))
    )
    by_layer = {layer.cache_layer: layer for layer in layers}
    total = extent(trace, number).without_cache
    growing = [by_layer[i] for i in by_layer if _grows(trace.meta.cache_layers[i])]
    held = sum(layer.held_bytes for layer in layers)
    full = sum(
        max(total - layer.rows, 0) * layer.row_bytes * step.num_sequences
        for layer in layers
        if trace.meta.cache_layers[layer.cache_layer].window
    )
    return CacheMemory(
        layers=layers,
        measured_bytes=step.cost.cache_bytes,
        token_bytes=sum(layer.row_bytes for layer in growing),
        state_bytes=sum(trace.meta.cache_layers[i].state_bytes for i in by_layer),
        mha=_as_heads(trace, by_layer, step.num_sequences, one=False),
        mqa=_as_heads(trace, by_layer, step.num_sequences, one=True),
        unshared=held + _shared_bytes(trace, by_layer, step),
        unwindowed=held + full,
    )


def _layer(layer: CacheLayer, group: CacheStep | None, sequences: int) -> LayerMemory | None:
    if layer.kind == "state":
        return LayerMemory(layer.index, 0, 0, 0, layer.state_bytes)
    if group is None:
        return None
    per_sequence = [row_count(runs) for runs in group.kept]
    rows = max(per_sequence, default=0)
    size = row_bytes(layer)
    slots = max(layer.capacity or 0, rows)
    return LayerMemory(layer.index, rows, slots, size, rows * size * sequences)


def _grows(layer: CacheLayer) -> bool:
    """Whether one more token makes it longer."""
    return layer.kind not in ("state", "cross") and not layer.window and not layer.capacity


def _as_heads(trace: Trace, held: dict[int, LayerMemory], sequences: int, *, one: bool) -> int:
    """Bytes of the same rows if every site's K,V had one kv head, or as many as query heads.

    Rows expanded from latents count by what the heads are given, not by the latent. Rows that are
    K and V in one, as absorbed latents are, stay as they are: what a head would be given instead
    was not seen.
    """
    total = 0
    counted: set[int] = set()
    for site in trace.meta.sites:
        layer = trace.meta.cache_layers[site.reads]
        rows = _rows_behind(trace, site.layer, layer, held)
        if rows == 0 or site.source == "shared" or layer.index in counted:
            continue
        counted.add(layer.index)
        if layer.num_kv_heads == 1 and layer.shared_dim and layer.index in held:
            total += held[layer.index].held_bytes
            continue
        heads = 1 if one else site.num_heads
        width = (site.key_dim + site.value_dim) * itemsize(layer.dtype)
        total += rows * heads * width * sequences
    return total


def _rows_behind(
    trace: Trace, model_layer: int, layer: CacheLayer, held: dict[int, LayerMemory]
) -> int:
    """Rows held for a site: its own cache layer's, or those of the latents it is derived from."""
    if layer.index in held:
        return held[layer.index].rows
    if layer.kind != "derived":
        return 0
    latents = [
        held[other.index].rows
        for other in trace.meta.cache_layers
        if other.index in held and other.kind == "latent" and other.layer == model_layer
    ]
    return max(latents, default=0)


def _shared_bytes(trace: Trace, held: dict[int, LayerMemory], step: Step) -> int:
    """What the sites that take over another's rows would hold if they kept their own."""
    shared = [site.reads for site in trace.meta.sites if site.source == "shared"]
    taken = [held[layer] for layer in shared if layer in held]
    for site in trace.meta.sites:
        layer = trace.meta.cache_layers[site.reads]
        if layer.kind == "derived" and site.source == "cache":  # of rows alone, not of latents
            copied = _layer(layer, step.cache_step(layer.index), 1)
            taken += [copied] if copied else []
    return sum(one.rows * one.row_bytes * step.num_sequences for one in taken)
