"""The rows one attention was given, with where each of them comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Floats


@dataclass(frozen=True, slots=True)
class CacheView:
    """The K,V rows one sequence's attention was given in one step, in slot order.

    Attributes:
        keys: [kv_heads, seq, key_dim].
        values: [kv_heads, seq, value_dim].
        cells: Cell number of each row, [seq]; the same cell is the same row for ever.
        slots: Slot of each row, [seq].
        positions: Logical position of each row, [seq]; negative: padding.
    """

    keys: Floats
    values: Floats
    cells: NDArray[np.int64]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]


def expanded(ranges: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Concatenate [first, first + count) for each pair."""
    parts = [np.arange(first, first + count, dtype=np.int64) for first, count in ranges]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
