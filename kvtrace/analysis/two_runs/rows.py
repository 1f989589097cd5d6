"""Rows of two runs, compared stretch by stretch: what can't be read is told, and not compared."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.two_runs.align import Fed, Stretch
from kvtrace.analysis.two_runs.flips import Flip, Flips
from kvtrace.errors import MissingError, TraceError
from kvtrace.trace import Site, Tensor, Trace
from kvtrace.trace.dtypes import Floats


class Parting(Struct, frozen=True):
    """The first rows that differ by more than rounding.

    Attributes:
        old_step, new_step: Steps that computed them.
        position: Of the first token whose rows do, in the sequence.
        sequence: Row of the batch; where beams change places, in the old run.
        new_sequence: And in the new one.
        layer, head: Where; a kv head for K and V.
        tensor: Which.
        apart, limit: Largest relative difference, and what would be rounding.
        count: Rows from `position` to the last that does, of those that were compared at once.
        beyond: How many of them do.
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
    beyond: int
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
        tie: The first choice, decided by rounding, that a difference beyond a limit follows from.
    """

    old: Trace
    new: Trace
    limits: NDArray[np.float64]
    growth: NDArray[np.float64] = field(init=False)
    tie: Flip | None = None
    _damaged: dict[tuple[bool, int, int, Tensor, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.growth = np.full(self.limits.shape, np.nan)

    @property
    def unread(self) -> tuple[str, ...]:
        """What is damaged, in words."""
        return tuple(dict.fromkeys(self._damaged.values()))

    def compare(self, stretch: Stretch, chosen: Flips) -> Parting | None:
        """One stretch in every layer; the first place beyond a limit, None where there is none.

        Args:
            stretch: Rows of both.
            chosen: What modules chose otherwise for the sequence.
        """
        first: Parting | None = None
        for site in self.old.meta.sites:
            for tensor in Tensor:
                apart = self._apart(stretch, site, tensor)
                if apart is None:
                    continue
                at = (site.index, int(tensor))
                worst = float(apart.max())
                beyond = np.flatnonzero((apart > self.limits[at]).any(axis=0))
                beyond = self._unexplained(beyond, stretch, site, chosen)
                self.growth[at] = np.fmax(self.growth[at], worst)
                if first is None and len(beyond):
                    first = Parting(
                        stretch.old.step,
                        stretch.new.step,
                        stretch.position + int(beyond[0]),
                        stretch.old.sequence,
                        site.index,
                        int(apart[:, beyond].max(axis=1).argmax()),
                        tensor,
                        float(apart[:, beyond].max()),
                        float(self.limits[at]),
                        int(beyond[-1] - beyond[0]) + 1,
                        len(beyond),
                        stretch.new.sequence,
                    )
        return first

    def _unexplained(
        self, beyond: NDArray[np.intp], stretch: Stretch, site: Site, chosen: Flips
    ) -> NDArray[np.intp]:
        """Rows beyond a limit that follow from no choice that rounding decided.

        Where all rows before are the same to the last bit, it decided nothing.
        """
        tie = chosen.ties(site.layer) if len(beyond) else None
        if tie is None:
            return beyond
        before = [one.index for one in self.old.meta.sites if one.layer <= tie.layer]
        if not np.nan_to_num(self.growth[before]).any():
            return beyond
        own = beyond[stretch.position + beyond < tie.position]
        if len(own) < len(beyond):
            self.tie = self.tie or tie
        return own

    def _apart(self, stretch: Stretch, site: Site, tensor: Tensor) -> NDArray[np.float64] | None:
        """Relative difference of each row of each head, [heads, rows]; None where a run lacks them.

        Relative to the largest number that the head has among them.
        """
        count = stretch.count
        right = self._rows(self.old, stretch.old, site.index, tensor)
        mine = self._rows(self.new, stretch.new, site.index, tensor)
        if right is None or mine is None:
            return None
        right = right[:, stretch.old.row : stretch.old.row + count]
        mine = mine[:, stretch.new.row : stretch.new.row + count]
        with np.errstate(invalid="ignore", over="ignore"):
            far = np.abs(mine.astype(np.float64) - right).max(axis=2)
            known = np.where(np.isfinite(right), np.abs(right.astype(np.float64)), 0.0)
            largest = known.max(axis=(1, 2))[:, None]
            relative = np.where(far == 0, 0.0, far / np.where(largest > 0, largest, np.nan))
        lost = np.isnan(right).any(axis=2)
        same = (np.isnan(mine) == np.isnan(right)).all(axis=2) & lost
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
