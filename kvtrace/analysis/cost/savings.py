"""What the shape of a cache saves: the same rows with less or more sharing, in bytes."""

from __future__ import annotations

from msgspec import Struct

from kvtrace.analysis.cost.memory import CacheMemory, cache_memory
from kvtrace.trace import Trace
from kvtrace.trace.dtypes import itemsize


class Saving(Struct, frozen=True):
    """The cache in another shape.

    Attributes:
        what: That shape, as a condition: "if every head had its own K and V".
        held_bytes: What the cache holds.
        otherwise_bytes: What it would hold.
    """

    what: str
    held_bytes: int
    otherwise_bytes: int


def savings(trace: Trace, number: int) -> tuple[Saving, ...]:
    """What the cache would hold after a step if it were not for this or that; nothing idle.

    Each stands alone: two of them together save more than either.

    Raises:
        MissingError: There is no such step.
    """
    memory: CacheMemory = cache_memory(trace, number)
    cases = (
        ("if every layer had its own K and V", memory.unshared),
        ("if every head had its own K and V", memory.mha + memory.state_bytes),
        ("if every layer kept every row", memory.unwindowed),
    )
    held = memory.held_bytes
    return tuple(Saving(what, held, other) for what, other in cases if held and other > held)


def further(trace: Trace, number: int) -> tuple[Saving, ...]:
    """What it would hold if it did more for it: heads that share rows, narrower numbers.

    Raises:
        MissingError: There is no such step.
    """
    memory = cache_memory(trace, number)
    cases = (
        ("if all heads shared one K and V", memory.mqa + memory.state_bytes if memory.mqa else 0),
        ("if its rows had 16 bits", _narrowed(trace, memory, 2)),
        ("if its rows had 8 bits, without scales", _narrowed(trace, memory, 1)),
    )
    held = memory.held_bytes
    return tuple(Saving(what, held, other) for what, other in cases if 0 < other < held)


def _narrowed(trace: Trace, memory: CacheMemory, most: int) -> int:
    """Bytes of the cache if no number of its rows had more than `most`; states stay as they are."""
    total = 0
    for layer in memory.layers:
        known = trace.meta.cache_layers[layer.cache_layer]
        each = itemsize(known.dtype)
        narrower = known.kind != "state" and each > most
        total += layer.held_bytes * most // each if narrower else layer.held_bytes
    return total
