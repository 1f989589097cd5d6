"""The comparisons of consecutive steps, gathered tensor by tensor and path by path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from kvtrace.record.lanes.compared.differ import Apart
from kvtrace.trace import LaneStep, LogitDiff, Meta


class Tally:
    """Worst differences of some steps so far; what was never added stays "not compared"."""

    def __init__(self, meta: Meta, steps: Sequence[int]) -> None:
        """Everything not compared.

        Args:
            meta: Gives sites and heads.
            steps: Numbers of the steps, ascending.
        """
        heads = max((max(one.num_heads, one.num_kv_heads) for one in meta.sites), default=0)
        grid = (len(steps), len(meta.sites), 4, heads)
        self.steps = list(steps)
        self.place = {number: place for place, number in enumerate(steps)}
        self.logits: list[dict[int, LogitDiff]] = [{} for _ in steps]
        self.elapsed_ns: list[int | None] = [None] * len(self.steps)
        self._max_abs = np.full(grid, np.nan, np.float32)
        self._reference = np.full(grid, np.nan, np.float32)
        self._where = np.full((3, *grid), -1, np.int32)
        self._beyond = np.full(grid, -1, np.int64)
        self._square = np.zeros(grid, np.float64)
        self._count = np.zeros(grid, np.int64)

    def add(
        self,
        steps: NDArray[np.intp],
        site: int,
        tensor: int,
        sequences: NDArray[np.int64],
        found: Apart,
        tolerance: float,
    ) -> bool:
        """Stretches of rows, one for each of different steps.

        Args:
            steps: Place of the step of each stretch.
            site: Index of the site.
            tensor: Index of the tensor.
            sequences: Row of the batch, for each stretch.
            found: Their differences.
            tolerance: Relative difference that counts as rounding.

        Returns:
            Whether any is beyond it; `count_beyond` then wants to know how many elements.
        """
        heads = len(found.max_abs)
        at = (steps, site, tensor, slice(0, heads))
        worst, old = found.max_abs.T.astype(np.float32), self._max_abs[at]
        first = np.isnan(old)
        higher = first | (worst > old)
        self._max_abs[at] = np.where(higher, worst, old)
        reference = found.reference.T.astype(np.float32)
        self._reference[at] = np.fmax(self._reference[at], reference)
        places = (np.broadcast_to(sequences[:, None], worst.shape), found.row.T, found.dim.T)
        for axis, place in enumerate(places):
            index = (axis, *at)
            self._where[index] = np.where(higher, place, self._where[index])
        self._beyond[at] = np.where(first, 0, self._beyond[at])
        self._square[at] += found.square.T
        self._count[at] += found.count.T
        return bool((worst > tolerance * reference).any())

    def take_over(self, step: int, earlier: Tally, place: int) -> None:
        """Go on with a step that an earlier tally began."""
        here = self.place[step]
        for name in ("_max_abs", "_reference", "_beyond", "_square", "_count"):
            getattr(self, name)[here] = getattr(earlier, name)[place]
        self._where[:, here] = earlier._where[:, place]
        self.logits[here] = earlier.logits[place]
        self.elapsed_ns[here] = earlier.elapsed_ns[place]

    def count_beyond(
        self, steps: NDArray[np.intp], site: int, tensor: int, counts: NDArray[np.int64]
    ) -> None:
        """Elements beyond the tolerance, [heads, stretches]."""
        self._beyond[steps, site, tensor, : len(counts)] += counts.T

    def any_beyond(self, place: int) -> bool:
        """Whether anything of a step exceeds the tolerance."""
        return bool((self._beyond[place] > 0).any())

    def any_compared(self, place: int) -> bool:
        """Whether anything of a step was compared."""
        return bool((self._count[place] > 0).any())

    def finish(self, lane: str, place: int) -> LaneStep:
        """The comparison of one step as the trace keeps it."""
        count = self._count[place]
        rms = np.sqrt(self._square[place] / np.maximum(count, 1))
        logits = self.logits[place]
        return LaneStep(
            lane,
            self.steps[place],
            self._max_abs[place],
            np.where(count > 0, rms, np.nan).astype(np.float32),
            self._reference[place],
            self._where[0, place],
            self._where[1, place],
            self._where[2, place],
            self._beyond[place],
            # they are told by place: those after one that is missing would be another's
            logits=tuple(logits[one] for one in takewhile(logits.__contains__, range(len(logits)))),
            elapsed_ns=self.elapsed_ns[place],
        )
