"""Models that look ahead: what follows from that, and what is wrong beside it.

The other lane computes a whole text at once. Where rows depend on later tokens, it has other rows
than the first step rightly had, and no difference in those tells of a cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvtrace.analysis.checks.noise import Noise, largest
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.heads.tensors import NAMES
from kvtrace.trace import Step, Tensor, Trace

_GIVEN = ("q", "k", "v")


@dataclass(slots=True)
class Ahead:
    """Which tensors of which sites look ahead, as far as steps that begin a text show.

    Attributes:
        trace, lane, limits: As `findings` was given them.
        since: The first layer whose rows look ahead; None: none do.
    """

    trace: Trace
    lane: str
    limits: Noise
    since: int | None
    _moved: dict[int, set[Tensor]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Look at a step."""
        compared = self.trace.compared(step.number, self.lane)
        if self.since is None or step.parent is not None or compared is None:
            return
        beyond = largest(compared, len(self.limits.threshold)) > self.limits.threshold
        for site, tensor in np.argwhere(beyond).tolist():
            if self.trace.site(site).layer >= self.since:
                self._moved.setdefault(site, set()).add(Tensor(tensor))

    def left(self, places: Sequence[int]) -> list[int]:
        """Those sites of which something may be compared."""
        return [site for site in places if len(self._moved.get(site, ())) < len(Tensor)]

    def beside(self, said: Iterable[Finding]) -> list[Finding]:
        """Those findings that do not only say that the model looks ahead."""
        return [one for one in said if not self._follows(one)]

    def _follows(self, found: Finding) -> bool:
        if self.since is None or self.trace.site(found.layer).layer < self.since:
            return False
        if found.layer not in self._moved:
            return True  # they did with fewer tokens: how far they do with more is chance
        # rows that see later ones have other weights in a longer pass, whatever the scores are
        moved = {NAMES[one] for one in self._moved[found.layer]}
        return found.tensor not in _GIVEN or found.tensor in moved


def ahead(trace: Trace, lane: str, limits: Noise, told: Sequence[Finding]) -> Ahead:
    """What the recorder said of looking ahead, among its findings."""
    layers = [trace.site(one.layer).layer for one in told if one.name == "NOT-CAUSAL"]
    return Ahead(trace, lane, limits, min(layers, default=None))
