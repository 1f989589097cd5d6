"""Where the memory of the cache is: by layer, over the steps, and what its shape saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from rich.style import Style

from kvtrace import units
from kvtrace.analysis.cost.memory import CacheMemory, LayerMemory, cache_memory
from kvtrace.analysis.cost.savings import further, savings
from kvtrace.text import safe
from kvtrace.trace import CacheLayer, Trace
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import bar, layered, strongest
from kvtrace_tui.drawing.binning import Binning
from kvtrace_tui.drawing.lines import Piece, padded

Row = Sequence[Piece]
_NAMES, _NUMBERS = 38, 12
_CHART = 8
_ROOMY = 96
_KIND, _KIND_NARROW = 37, 28
"""Cells for what a layer is, where there is room beside the numbers and where there is little."""


def memory_rows(trace: Trace, number: int, width: int) -> list[Row]:
    """Everything about the memory after a step.

    Raises:
        MissingError: There is no such step.
    """
    memory = cache_memory(trace, number)
    return [
        [],
        *_totals(trace, number, memory),
        [],
        [(" cache layers", ink.ACCENT)],
        *_layers(trace, memory, width),
        *_named_otherwise(trace, width),
        [],
        *_saved(trace, number, memory, width),
        [(" over the steps", ink.ACCENT)],
        *_growth(trace, number, width),
    ]


def _totals(trace: Trace, number: int, memory: CacheMemory) -> Iterator[Row]:
    """What is held, what one more token adds, and how far that goes."""
    counted = "rows and states" if memory.state_bytes else "rows"
    yield [
        (f" After step {number} the cache holds ", ink.TEXT),
        (units.byte_size(memory.measured_bytes), ink.CACHED),
        (f"; its {counted} take {units.byte_size(memory.held_bytes)}.", ink.TEXT),
    ]
    grows = units.byte_size(memory.token_bytes)
    more = f" One more token of one sequence adds {grows}." if memory.token_bytes else ""
    if not memory.token_bytes:
        more = " One more token adds nothing: its layers are full, windowed or constant."
    yield [(more, ink.TEXT)]
    if memory.state_bytes:
        states = units.byte_size(memory.state_bytes)
        yield [(f" Recurrent states take {states}, whatever the length.", ink.TEXT)]
    length = trace.meta.model.context_length
    rows = max((layer.rows for layer in memory.layers), default=0)
    if length > rows and memory.token_bytes:
        one = memory.held_bytes // trace.step(number).num_sequences
        full = one + (length - rows) * memory.token_bytes
        yield [
            (f" At its context length of {units.count(length)} tokens one sequence would take ",
             ink.TEXT),
            (units.byte_size(full), ink.STRONG), (".", ink.TEXT),
        ]  # fmt: skip


def _layers(trace: Trace, memory: CacheMemory, width: int) -> Iterator[Row]:
    """A line for each run of layers that are alike."""
    known = trace.meta.cache_layers
    most = max((layer.held_bytes for layer in memory.layers), default=0)

    def alike(layer: LayerMemory) -> tuple[object, ...]:
        one = known[layer.cache_layer]
        shape = one.num_kv_heads, one.key_dim, one.value_dim, one.dtype, one.state_bytes
        return one.kind, one.window, layer.rows, layer.slots, layer.held_bytes, *shape

    kinds = _KIND if width >= _ROOMY else _KIND_NARROW
    yield [
        (f"   {'layer':<9}{'kind':<{kinds}}{'rows':>9}{'of a row':>{_NUMBERS}}{'held':>{_NUMBERS}}",
         ink.DIM)
    ]  # fmt: skip
    for _, group in groupby(memory.layers, alike):
        layers = list(group)
        first, one = layers[0], known[layers[0].cache_layer]
        name = _numbers([_model_layer(trace, known[layer.cache_layer]) for layer in layers])
        each = " each" if len(layers) > 1 else ""
        rows = "–" if one.kind == "state" else str(first.rows)
        if first.slots > first.rows:
            rows = f"{first.rows}/{first.slots}"
        size = "–" if one.kind == "state" else units.byte_size(first.row_bytes)
        part = bar(first.held_bytes / most if most else 0.0, max(min(width - 54 - kinds, 40), 0))
        yield [
            (f"   {name:<9}", ink.STRONG),
            (padded(_fitting(_kind(one), kinds), kinds), ink.TEXT),
            (f"{rows:>9}{size:>{_NUMBERS}}", ink.TEXT),
            (f"{units.byte_size(first.held_bytes):>{_NUMBERS}}", ink.CACHED),
            (f"{each:<6}", ink.DIM),
            (part, ink.CACHED),
        ]


def _model_layer(trace: Trace, layer: CacheLayer) -> int:
    """The cache's own number of it, else that of the layer whose attention reads it; -1: none."""
    readers = (site.layer for site in trace.meta.sites if site.reads == layer.index)
    return layer.layer if layer.layer >= 0 else next(readers, -1)


def _named_otherwise(trace: Trace, width: int) -> Iterator[Row]:
    """Which of them each layer of the grid reads, where that counts only those that attend."""
    known = trace.meta.cache_layers
    read = [(site.layer, _model_layer(trace, known[site.reads])) for site in trace.meta.sites]
    if all(layer == number or number < 0 for layer, number in read):
        return
    words = "   on the grid "
    for layer, number in read:
        one = f"L{layer} reads {number}, "
        if len(words) + len(one) > width:
            words += "…"
            break
        words += one if number >= 0 else ""
    yield [(words.removesuffix(", "), ink.DIM)]


def _numbers(names: Sequence[int]) -> str:
    """Layer numbers: "3", "0–11", "1, 3, 5 …"; a dash where one is not known."""
    if min(names) < 0:
        return "–"
    if len(names) == 1:
        return str(names[0])
    if list(names) == list(range(names[0], names[0] + len(names))):
        return f"{names[0]}–{names[-1]}"
    return padded(", ".join(map(str, names)), 8)


def _fitting(kind: str, room: int) -> str:
    """What a layer is, with fewer words where all of them do not fit."""
    if len(kind) <= room:
        return kind
    return kind.replace(", window ", " ").replace(" kv heads × ", " kv × ")


def _kind(layer: CacheLayer) -> str:
    """What it is, in a few words."""
    words = [safe(layer.kind, 16)]
    if layer.kind == "state":
        return f"{words[0]}, constant"
    if layer.window:
        words.append(f"window {layer.window}")
    heads = f"{layer.num_kv_heads} kv head{'s' if layer.num_kv_heads != 1 else ''}"
    if layer.kind == "latent":
        rotary = f" + rotary {layer.value_dim}" if layer.value_dim else ", no rotary key"
        return f"latent {layer.key_dim}{rotary}"
    return ", ".join([*words, f"{heads} × {layer.key_dim}"])


def _saved(trace: Trace, number: int, memory: CacheMemory, width: int) -> Iterator[Row]:
    """What the cache would hold in another shape."""
    cases = (*savings(trace, number), *further(trace, number))
    if not cases:
        return
    yield [(" what its shape saves, and could", ink.ACCENT)]
    most = max(memory.held_bytes, *(one.otherwise_bytes for one in cases))
    lines = [("as it is", memory.held_bytes, ink.CACHED)]
    lines += [(one.what, one.otherwise_bytes, ink.RECOMPUTED) for one in cases]
    for what, size, style in lines:
        times = units.ratio(size, memory.held_bytes) if size != memory.held_bytes else ""
        yield [
            (f"   {padded(what, _NAMES)}", ink.TEXT),
            (f"{units.byte_size(size):>{_NUMBERS}}", style),
            (f"{times:>8}  ", ink.STRONG),
            (bar(size / most, max(min(width - 64, 60), 0)), style),
        ]
    yield []


def _growth(trace: Trace, number: int, width: int) -> Iterator[Row]:
    """Bytes of the cache after every step."""
    table = trace.overview
    sizes = table["cache_bytes"].astype(np.float64)
    high = float(sizes.max(initial=0.0))
    room = max(width - 4, 1)
    bins = Binning.fit(len(sizes), min(room, max(len(sizes), 1) * 8))
    if high <= 0 or not bins.cells:
        yield [("   nothing was measured", ink.DIM)]
        return
    parts = np.repeat(strongest(sizes, bins.bins) / high, bins.stretch).tolist()
    here = bins.cells_of(int(np.searchsorted(table["number"], number)))
    inks = [_column(cell in here) for cell in range(bins.cells)]
    for strip in layered(parts, [0.0] * len(parts), _CHART, inks):
        yield [("   ", ink.TEXT), *((part.text, part.style or ink.TEXT) for part in strip)]
    yield [
        (f"   {units.byte_size(int(sizes[0]))} after step {int(table['number'][0])}, ", ink.DIM),
        (f"{units.byte_size(int(sizes[-1]))} after step {int(table['number'][-1])}, ", ink.DIM),
        (f"at most {units.byte_size(int(high))}", ink.DIM),
    ]


def _column(here: bool) -> tuple[Style, Style]:
    style = ink.ACCENT if here else ink.CACHED
    return style, style
