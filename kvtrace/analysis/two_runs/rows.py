"""Rows of two runs, compared stretch by stretch: what can't be read is told, and not compared."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.two_runs.align import Fed, Stretch
from kvtrace.errors import MissingError, TraceError
from kvtrace.trace import Site, Tensor, Trace
from kvtrace.trace.dtypes import Floats


@dataclass(frozen=True, slots=True)
class Parting:
    """The first rows that differ by more than rounding.

    Attributes:
        old_step, new_step: Steps that computed them.
        position: Of the token, in the sequence.
        sequence: Row of the batch; where beams change places, in the old run.
        new_sequence: And in the new one.
        layer, head: Where; a kv head for K and V.
        tensor: Which.
        apart, limit: Largest relative difference, and what would be rounding.
        count: Rows that were compared at once, from `position` on.
    """

    old_step: int
    new_step: int
    position: int
    sequence: int
    layer: int
    head: int
    tensor: Tensor
    apart: float
    limit: float
    count: int
    new_sequence: int = 0

    @property
    def places(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(step, row of the batch) in the old run and in the new one."""
        return (self.old_step, self.sequence), (self.new_step, self.new_sequence)


@dataclass(slots=True)
class Rows:
    """Two runs whose rows are compared.

    Attributes:
        old, new: The runs.
        limits: What counts as rounding, [sites, 4].
        growth: Largest relative difference so far, [sites, 4]; NaN where nothing was compared.
    """

    old: Trace
    new: Trace
    limits: NDArray[np.float64]
    growth: NDArray[np.float64] = field(init=False)
    _damaged: dict[tuple[bool, int, int, Tensor, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.growth = np.full(self.limits.shape, np.nan)

    @property
    def unread(self) -> tuple[str, ...]:
        """What is damaged, in words."""
        return tuple(dict.fromkeys(self._damaged.values()))

    def compare(self, stretch: Stretch) -> Parting | None:
        """One stretch in every layer; the first place beyond a limit, None where there is none."""
        first: Parting | None = None
        for site in self.old.meta.sites:
            for tensor in Tensor:
                apart = self._apart(stretch, site, tensor)
                if apart is None:
                    continue
                at = (site.index, int(tensor))
                worst = float(apart.max())
                self.growth[at] = np.fmax(self.growth[at], worst)
                if first is None and worst > self.limits[at]:
                    first = Parting(
                        stretch.old.step,
                        stretch.new.step,
                        stretch.position,
                        stretch.old.sequence,
                        site.index,
                        int(apart.argmax()),
                        tensor,
                        worst,
                        float(self.limits[at]),
                        stretch.count,
                        stretch.new.sequence,
                    )
        return first

    def _apart(self, stretch: Stretch, site: Site, tensor: Tensor) -> NDArray[np.float64] | None:
        """Largest relative difference of each head; None where one of the runs lacks the rows."""
        count = stretch.count
        right = self._rows(self.old, stretch.old, site.index, tensor)
        mine = self._rows(self.new, stretch.new, site.index, tensor)
        if right is None or mine is None:
            return None
        right = right[:, stretch.old.row : stretch.old.row + count]
        mine = mine[:, stretch.new.row : stretch.new.row + count]
        with np.errstate(invalid="ignore", over="ignore"):
            far = np.abs(mine.astype(np.float64) - right).max(axis=(1, 2))
            largest = np.abs(right.astype(np.float64)).max(axis=(1, 2))
            relative = np.where(far == 0, 0.0, far / np.where(largest > 0, largest, np.nan))
        lost = np.isnan(right).any(axis=(1, 2))
        same = (np.isnan(mine) == np.isnan(right)).all(axis=(1, 2)) & lost
        # not finite in both is no difference between the runs; in one of them it is the largest
        return np.where(same, 0.0, np.where(np.isfinite(relative), relative, np.inf))

    def _rows(self, trace: Trace, fed: Fed, layer: int, tensor: Tensor) -> Floats | None:
        """New rows of a step; None where there is not one for each token, or they are damaged."""
        try:
            rows = trace.rows(fed.step, layer, tensor, fed.sequence)
        except MissingError:
            return None
        except TraceError as error:
            self._damaged[trace is self.new, fed.step, layer, tensor, fed.sequence] = str(error)
            return None
        return rows if rows is not None and rows.shape[1] == trace.step(fed.step).new else None
