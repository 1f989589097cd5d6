"""How another lane compares with the cached one, for one step."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


class LogitDiff(Struct, frozen=True, omit_defaults=True):
    """Logits of the last row in both lanes, for one sequence.

    Attributes:
        max_abs: Largest difference over the whole vocabulary.
        margin: Lead of the best logit in the cached lane.
        best, lane_best: The token each lane would choose.
    """

    max_abs: float
    margin: float
    best: int
    lane_best: int


class LaneStep(Struct, frozen=True, omit_defaults=True):
    """Comparison of one lane with the cached one, rows new in this step.

    All arrays are [sites, 4, heads] with the tensors in the order of `Tensor`; kv tensors use
    their kv heads; what was not compared is NaN (or -1): absent never means equal.

    Attributes:
        lane: Name of the lane.
        step: Number of the step.
        max_abs: Largest |cached - lane|, float32.
        rms: Root mean square of the difference, float32.
        reference_max: Largest |lane|, float32: relative error is max_abs / reference_max.
        sequence, row, dim: Where max_abs is: sequence, row within the step, feature; int32.
        beyond: Elements whose difference exceeds the lane's tolerance × reference_max; int64.
        logits: Per sequence; empty if not compared.
        elapsed_ns: Wall time of this lane's forward for this step; None if there was none.
        passes: Per sequence, where its rows are in the lane's own forward, if that was kept:
            (number of the pass, sequence in it, place of the step's first row).
    """

    lane: str
    step: int
    max_abs: NDArray[np.float32]
    rms: NDArray[np.float32]
    reference_max: NDArray[np.float32]
    sequence: NDArray[np.int32]
    row: NDArray[np.int32]
    dim: NDArray[np.int32]
    beyond: NDArray[np.int64]
    logits: tuple[LogitDiff, ...] = ()
    elapsed_ns: int | None = None
    passes: tuple[tuple[int, int, int], ...] = ()

    @property
    def relative(self) -> NDArray[np.float32]:
        """max_abs / reference_max, [sites, 4, heads]; NaN where not compared, 0/0 is 0."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            quotient = self.max_abs / self.reference_max
        return np.where(self.max_abs == 0, np.float32(0), quotient).astype(np.float32)
