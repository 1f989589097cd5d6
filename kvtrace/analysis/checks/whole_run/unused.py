"""Tokens that are fed again: to a cache nobody uses, or on top of one that still holds them."""

from __future__ import annotations

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace

_DIFFERENT = 4
"""A text of fewer different tokens repeats itself by chance."""


class FedAgain:
    """Counts steps that process every token again although there is a cache.

    What is fed is the whole text so far and more. Where attention is given no other rows, the
    cache serves nothing; where it is given those of before too, every token is seen twice.
    """

    def __init__(self) -> None:
        self._again, self._steps, self._first, self._longest = 0, 0, 0, 0
        self._streak, self._used = 0, False
        self._before: tuple[int, ...] = ()
        self._text: tuple[int, ...] = ()
        self._on_top: list[tuple[int, int, int]] = []

    def add(self, step: Step) -> None:
        """Take the next step in."""
        tokens, before = step.tokens[0] if step.tokens else (), self._before
        grown = len(tokens) > len(before) > 1 and tokens[: len(before)] == before
        alone = _alone(step, len(tokens))
        self._streak = self._streak + 1 if grown and alone else 0
        if self._streak > 1:
            # once may be a text that is asked for with what it goes on with, as whoever scores does
            self._first = self._first or step.number - 1
            self._again += 2 if self._streak == 2 else 1
            self._longest = max(self._longest, len(tokens))
        self._steps += 1
        self._used = self._used or not alone
        self._before = tokens
        self._follow(step, tokens)

    def _follow(self, step: Step, tokens: tuple[int, ...]) -> None:
        """The text as its writer knows it, which a step may go on with or begin again."""
        if step.parent is None:
            self._text = tokens
            return
        text = self._text
        whole = len(tokens) > len(text) and tokens[: len(text)] == text
        older = _older(step)
        if not (whole and len(set(text)) >= _DIFFERENT and older >= len(text)):
            self._text = (*text, *tokens)
            return
        self._text = tokens
        self._on_top.append((step.number, len(text), older + len(tokens)))

    def finding(self, trace: Trace) -> Finding | None:
        """What all steps together show."""
        if len(self._on_top) > 1:
            number, known, seen = self._on_top[0]
            evidence = (
                f"the step was fed all {known} tokens again that the cache still holds, and so "
                f"were {len(self._on_top) - 1} more: attention sees {seen} rows"
            )
            return Finding("DUPLICATE-ROWS", number, 0, "k", evidence)
        held = any(layer.held for layer in trace.meta.cache_layers)
        if held and not self._used and 0 < self._steps <= 2 * self._again:
            evidence = f"{self._again} steps fed all tokens again, the longest one {self._longest}"
            return Finding("CACHE-NOT-USED", self._first, 0, "k", evidence)
        return None

    @property
    def once(self) -> str:
        """That a text was fed again a single time, which may be meant; empty: it was not."""
        if len(self._on_top) != 1:
            return ""
        number, known, seen = self._on_top[0]
        return (
            f"step {number} was fed all {known} tokens before it again, while the cache still "
            f"holds them: attention sees them twice ({seen} rows); feed only what is new, if that "
            "is not meant"
        )


def _alone(step: Step, tokens: int) -> bool:
    """Whether attention is given no more rows than went in, in any layer."""
    return any(sum(run.count for run in group.attended[0]) <= tokens for group in step.caches)


def _older(step: Step) -> int:
    """Rows of earlier steps that attention is given of the first sequence."""
    return max(
        (
            sum(min(run.count, max(0, group.first_cell - run.cell)) for run in group.attended[0])
            for group in step.caches
            if group.attended and group.rows == step.new
        ),
        default=0,
    )
