"""What a walk has found so far, and where in a step something else may still be found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Site, Step, Trace

VAGUE = ("UNKNOWN", "CONTENT", "UPSTREAM", "POSITION-EMBEDDING")
"""Findings that say that something differs, and hardly what."""

_FAINT = 4.0
"""Times what is rounding: no more is left of a known cause where norms divide it out again."""

Turn = tuple[bool, int, bool]
"""When a site attends within a step, as `turn_of` says."""


@dataclass(slots=True)
class Causes:
    """What was found so far, and where something else may still be found.

    Behind the first divergence, all that comes after it in a step differs, and in later steps all
    layers do from there on. What comes before it is right, until it has a cause of its own.

    Attributes:
        trace: Whose steps.
        first: The earliest turn within a step at which something was found; None: nothing was.
    """

    trace: Trace
    first: Turn | None = None
    _explained: set[int] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)

    def known(self, found: Finding) -> bool:
        """Whether what was found explains it: a row that was written over is missing later."""
        return found.name == "HISTORY-LOST" and "ROW-OVERWRITTEN" in self._names

    def of_all(self, step: Step) -> bool:
        """Whether every sequence of a step has its cause."""
        return self._explained >= set(range(step.num_sequences))

    def steps(self) -> Iterator[Step]:
        """All steps; sequences that go on from an explained one, as beams do, are explained too."""
        for step in self.trace:
            self._explained |= {n for n, one in enumerate(step.order) if one in self._explained}
            yield step

    def before(self, step: Step, places: list[int]) -> list[int]:
        """Sites that nothing found so far explains."""
        first = self.first
        if first is None or not self.of_all(step):
            return places
        return [site for site in places if turn_of(self.trace.site(site)) < first]

    def unknown(self, step: Step, padded: set[int]) -> list[int]:
        """Sequences to look at."""
        explained = set() if self.of_all(step) else self._explained
        return [n for n in range(step.num_sequences) if n not in explained | padded]

    def news(self, step: Step, found: Finding) -> bool:
        """Whether a finding is more than the first one again; vague ones come first or not."""
        if found.name in VAGUE:
            return self.first is None
        faint = found.apart is not None and found.apart <= _FAINT * (found.limit or 0.0)
        if faint and self.of_all(step):
            return False
        return not self.of_all(step) or found.name not in self._names

    def add(self, step: Step, here: Sequence[Finding]) -> None:
        """Findings of a step, at one site."""
        for one in here:
            turn = turn_of(self.trace.site(one.layer))
            self.first = turn if self.first is None else min(self.first, turn)
            self._explained |= set(one.sequences or range(step.num_sequences))
            self._names.add(one.name)

    def others(self, found: Iterable[Finding]) -> Iterator[Finding]:
        """Causes beside those, each remembered."""
        for one in found:
            if one.name not in self._names:
                self._names.add(one.name)
                yield one


def turn_of(site: Site) -> Turn:
    """When a site attends within a step: encoders first, in a layer self before cross."""
    return site.kind != "encoder", site.layer, site.kind == "cross"
