"""What a LANE frame says: a comparison as JSON and arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from kvtrace.trace import LaneStep, LogitDiff
from kvtrace.trace.dtypes import Array


class LaneFields(Struct, frozen=True, omit_defaults=True):
    """The JSON of a LANE frame; the arrays are its payload.

    Attributes:
        lane, step: As in `LaneStep`.
        shape: Of the arrays, [sites, 4, heads].
        logits, elapsed_ns, passes: As in `LaneStep`.
    """

    lane: str
    step: int
    shape: tuple[int, ...]
    logits: tuple[LogitDiff, ...] = ()
    elapsed_ns: int | None = None
    passes: tuple[tuple[int, int, int], ...] = ()

    @property
    def cells(self) -> int:
        """Elements of an array; -1 for a shape that can't be."""
        if len(self.shape) != 3 or min(self.shape) < 0 or self.shape[1] != 4:
            return -1
        return self.shape[0] * self.shape[1] * self.shape[2]


ARRAYS: Mapping[str, np.dtype[np.generic]] = {
    "max_abs": np.dtype("<f4"),
    "rms": np.dtype("<f4"),
    "reference_max": np.dtype("<f4"),
    "sequence": np.dtype("<i4"),
    "row": np.dtype("<i4"),
    "dim": np.dtype("<i4"),
    "beyond": np.dtype("<i8"),
}
"""The arrays of a LaneStep in the order they are stored, each one unit."""

CELL_BYTES = sum(dtype.itemsize for dtype in ARRAYS.values())


def lane_fields(comparison: LaneStep) -> LaneFields:
    """The JSON of a comparison."""
    return LaneFields(
        comparison.lane,
        comparison.step,
        comparison.max_abs.shape,
        comparison.logits,
        comparison.elapsed_ns,
        comparison.passes,
    )


def lane_arrays(comparison: LaneStep) -> list[Array]:
    """The arrays of a comparison, in the order they are stored."""
    return [np.ascontiguousarray(getattr(comparison, name), kind) for name, kind in ARRAYS.items()]
