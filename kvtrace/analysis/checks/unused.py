"""A cache that nobody uses: every step processes every token again."""

from __future__ import annotations

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace


class FedAgain:
    """Counts steps that process every token again although there is a cache."""

    def __init__(self) -> None:
        self._again, self._steps, self._second = 0, 0, 0
        self._before: tuple[int, ...] = ()

    def add(self, step: Step) -> None:
        """Take the next step in."""
        tokens, before = step.tokens[0] if step.tokens else (), self._before
        grown = len(tokens) > len(before) > 1 and tokens[: len(before)] == before
        self._again += grown
        self._steps += 1
        self._second = step.number if self._steps == 2 else self._second
        self._before = tokens

    def finding(self, trace: Trace) -> Finding | None:
        """What all steps together show."""
        held = any(layer.held for layer in trace.meta.cache_layers)
        if held and self._again > 1 and self._again == self._steps - 1:
            evidence = f"{self._again} steps fed all tokens again, the last one {len(self._before)}"
            return Finding("CACHE-NOT-USED", self._second, 0, "k", evidence)
        return None
