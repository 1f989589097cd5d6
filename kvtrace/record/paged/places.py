"""What is known of one request's part in a packed forward: where its rows lie in the pool."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.record.cost.measured import Measured
from kvtrace.trace import Packed

Slots = NDArray[np.int64]
"""Slots of a pool, one a row: block · slots of a block + place in the block; -1: in none."""


class Placed(Struct, frozen=True, eq=False):
    """Where the rows of one request lie, in the pool of one group of layers.

    Attributes:
        pool: Number of the pool, counted as they are met.
        group: Which group of layers; those of a group share their slots.
        forward: Number of the packed forward.
        old: Slots that the older rows were read from, in the order attended to.
        new: Slots that the new rows were written to.
        capacity: Slots of the pool.
        block: Slots of a block.
        copied: Slots that were copied in the pool since the last forward: (from, to).
        foreign: Somebody else has written to the pool since then: what is in it is not known.
    """

    pool: int
    group: int
    forward: int
    old: Slots
    new: Slots
    capacity: int
    block: int
    copied: tuple[tuple[Slots, Slots], ...] = ()
    foreign: bool = False


class Part(Struct, frozen=True):
    """One request's part in a packed forward.

    Attributes:
        forward: Number of the packed forward, counted from 0.
        request: Its name in the engine.
        place: Which of the requests in this forward it is.
        of: How many there are.
        prompt: Tokens of its prompt; None where the engine did not say.
        elapsed_ns: Wall time of the whole forward, our own taken out.
        whole: Sizes of the whole forward, told with its first part.
    """

    forward: int
    request: str
    place: int
    of: int
    prompt: int | None
    elapsed_ns: int
    whole: Measured | None = None


def packed_of(part: Part | None) -> Packed | None:
    """As the trace says it."""
    if part is None:
        return None
    return Packed(part.forward, part.request, part.place, part.of, part.elapsed_ns)
