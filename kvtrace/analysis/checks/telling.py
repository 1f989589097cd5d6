"""Findings as they are found, told at once, but for those that other hooks may explain."""

from __future__ import annotations

from collections.abc import Callable

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import HOOKS_CHANGED, Trace

Told = Callable[[Finding], None]


class Telling:
    """Findings in their order; those that other hooks may explain are told when nothing else is.

    Attributes:
        found: They.
        hooked: Up to this step the model had other hooks than the lane; -1: it had the same.
    """

    def __init__(self, trace: Trace, on_finding: Told | None) -> None:
        """Nothing was found yet."""
        notes = (note for note in trace.notes if note.text == HOOKS_CHANGED)
        self.hooked = max((note.step or 0 for note in notes), default=-1)
        self.found: list[Finding] = []
        self._trace, self._tell = trace, on_finding
        self._told = 0

    def of(self, one: Finding) -> None:
        """One more."""
        self.found.append(one)
        if one.step > self.hooked:
            self.now()

    def now(self) -> None:
        """Tell what was not told."""
        if self._tell is not None:
            for one in self.found[self._told :]:
                self._tell(one)
        self._told = len(self.found)

    @property
    def by_hooks(self) -> bool:
        """Whether other hooks explain it all: they change a text from its first step on."""
        bugs = [one for one in self.found if one.kind.bug]
        early = bool(bugs) and all(one.step <= self.hooked for one in bugs)
        return early and self._trace.step(bugs[0].step).parent is None
