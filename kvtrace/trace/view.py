"""The rows one attention was given, with where each of them comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats
from kvtrace.trace.step import PoolRun, Runs


class CacheView(Struct, frozen=True):
    """The K,V rows one sequence's attention was given in one step, in slot order.

    Attributes:
        keys: [kv_heads, seq, key_dim].
        values: [kv_heads, seq, value_dim].
        cells: Cell number of each row, [seq]; the same cell is the same row for ever.
        slots: Slot of each row, [seq].
        positions: Logical position of each row, [seq]; negative: padding.
        pool: Slot of each row in the pool of a paged cache, [seq]: block · slots of a block +
            place in it; -1: in none. Empty where there is no pool.
    """

    keys: Floats
    values: Floats
    cells: NDArray[np.int64]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    pool: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def pool_slots(runs: Sequence[PoolRun]) -> NDArray[np.int64]:
    """The slot of each row; -1 where it is in none."""
    slots = expanded([(run.slot, run.count) for run in runs])
    nowhere = np.repeat([run.slot < 0 for run in runs], [run.count for run in runs])
    return np.where(nowhere, np.int64(-1), slots) if runs else slots


def cells_of(runs: Runs) -> NDArray[np.int64]:
    """Cell numbers of some runs, in slot order, [seq]."""
    return expanded([(run.cell, run.count) for run in runs])


def slots_of(runs: Runs) -> NDArray[np.int64]:
    """The slot of each row, [seq]."""
    return expanded([(run.slot, run.count) for run in runs])


def positions_of(runs: Runs) -> NDArray[np.int64]:
    """The position of each row, [seq]."""
    return expanded([(run.position, run.count) for run in runs])


def expanded(ranges: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Concatenate [first, first + count) for each pair."""
    parts = [np.arange(first, first + count, dtype=np.int64) for first, count in ranges]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
