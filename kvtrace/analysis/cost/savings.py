"""What the shape of a cache saves: the same rows with less or more sharing, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrace.analysis.cost.memory import CacheMemory, cache_memory
from kvtrace.trace import Trace


@dataclass(frozen=True, slots=True)
class Saving:
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


def further(trace: Trace, number: int) -> Saving | None:
    """What it would hold as multi-query attention; None: no less than it does.

    Raises:
        MissingError: There is no such step.
    """
    memory = cache_memory(trace, number)
    other = memory.mqa + memory.state_bytes
    if not memory.mqa or other >= memory.held_bytes:
        return None
    return Saving("if all heads shared one K and V", memory.held_bytes, other)
