"""The last token of a prompt that a loop feeds once more, where it should feed what was chosen.

A pass over the prompt tells what comes next; a loop that begins by feeding the last token again has
its row twice. Lanes are equal then, for without a cache the same tokens are fed. What tells is
that each later step feeds the likeliest token, and this one does not; and, where the prompt is
known, that all of it had been fed before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step
from kvtrace.trace.step import Runs, TopLogits

_LATER = 3
"""Steps that feed the likeliest token, at least, for a loop that chooses so."""

_LATER_KNOWN = 2
"""The same behind a prompt that is known."""

_UNLIKELY = 0.05
"""A token of a lower probability is hardly what a loop chose that always chose the likeliest."""


@dataclass(slots=True)
class _Text:
    """A text as it is fed.

    Attributes:
        fed: Its tokens.
        again: The step that feeds the last one again, that token and the likeliest; None: none.
        unlikely: It was not chosen: it is too improbable.
        whole: The prompt, as it is known, has been fed.
        steps: Of one token, behind it.
        greedy, other: Those that feed the likeliest token, and another one.
    """

    fed: list[int] = field(default_factory=list)
    again: tuple[int, int, int] | None = None
    unlikely: bool = False
    whole: bool = False
    steps: int = 0
    greedy: int = 0
    other: int = 0

    @property
    def sure(self) -> bool:
        """Whether that step is no choice of the loop's."""
        return self.unlikely and self.greedy >= _LATER_KNOWN and not self.other


class LastTwice:
    """Looks at the first step after each prompt, and at whether the others feed the likeliest.

    Args:
        prompt: Token ids that each text begins with; empty: they are not known.
    """

    def __init__(self, prompt: Sequence[int] = ()) -> None:
        self._prompt = list(prompt)
        self._before: Step | None = None
        self._texts: list[_Text] = []

    def add(self, step: Step) -> None:
        """Take the next step in."""
        before, self._before = self._before, step
        goes_on = before is not None and step.parent == before.number
        if not goes_on or not self._texts:
            self._texts.append(_Text())
        text = self._texts[-1]
        if before is not None and goes_on and step.new == 1:
            self._look(text, before, step)
        text.fed += step.tokens[0] if len(step.tokens) == 1 else ()
        text.whole = text.whole or text.fed[-len(self._prompt) :] == self._prompt

    def _look(self, text: _Text, before: Step, step: Step) -> None:
        fed, top = _only(step.tokens), before.top[0] if before.top else None
        if fed is None or top is None or not top.ids or (self._prompt and not text.whole):
            return
        first = text.steps == 0 if self._prompt else before.new > 1
        text.steps += 1
        if fed == top.ids[0]:
            text.greedy += 1
        elif first and fed == text.fed[-1] and _grew(before, step):
            text.again = step.number, fed, top.ids[0]
            text.unlikely = _probability(top, fed) < _UNLIKELY
        else:
            text.other += 1

    @property
    def _chooses(self) -> bool:
        """Whether the loop is known to feed the likeliest token, this one step apart."""
        greedy = sum(text.greedy for text in self._texts)
        return greedy >= _LATER and not any(text.other for text in self._texts)

    @property
    def _found(self) -> list[tuple[int, int, int]]:
        return [text.again for text in self._texts if text.again is not None]

    def finding(self) -> Finding | None:
        """Where a text begins so behind a known prompt, or texts that end otherwise all do."""
        sure = next((text for text in self._texts if text.sure), None) if self._prompt else None
        if sure is not None and sure.again is not None:
            number, token, likeliest = sure.again
            evidence = (
                f"all {len(self._prompt)} tokens of the prompt had been fed; the step was fed its "
                f"last one, {token}, again and not the likeliest, {likeliest}, as every later step "
                "was: attention sees the last row twice"
            )
            return Finding("DUPLICATE-ROWS", number, 0, "k", evidence)
        if not self._chooses or len({token for _, token, _ in self._found}) < 2:
            return None
        number, token, _ = self._found[0]
        evidence = (
            f"the step was fed token {token} again, the last one of its prompt, and so were those "
            f"after {len(self._found) - 1} other prompts; every later step feeds the likeliest "
            "token: attention sees the last row twice"
        )
        return Finding("DUPLICATE-ROWS", number, 0, "k", evidence)

    @property
    def once(self) -> str:
        """The same of a single text, which may end with one token twice; empty: there is none."""
        if not self._chooses or not self._found or self.finding() is not None:
            return ""
        number, token, likeliest = self._found[0]
        unless = (
            "it was drawn by chance" if self._prompt else "the prompt ends with that token twice"
        )
        return (
            f"step {number} was fed token {token}, as the step before it was last, and not the "
            f"likeliest, {likeliest}, as every later step: unless {unless}, the prompt's last "
            "token is fed again, and attention sees it twice"
        )


def _only(tokens: tuple[tuple[int, ...], ...]) -> int | None:
    """The token of a step with one sequence."""
    return tokens[0][0] if len(tokens) == 1 and len(tokens[0]) == 1 else None


def _probability(top: TopLogits, token: int) -> float:
    """Of a token to come next, at most: those that are not among the highest have less."""
    place = top.ids.index(token) if token in top.ids else -1
    return math.exp(top.logits[place] - top.logsumexp)


def _grew(before: Step, step: Step) -> bool:
    """Whether attention is given a row more than before: none was written over."""
    return any(
        group.rows == 1 and _rows(group.attended) > _rows(older.attended)
        for group in step.caches
        for older in before.caches
        if older.layers == group.layers
    )


def _rows(attended: tuple[Runs, ...]) -> int:
    return sum(run.count for run in attended[0]) if attended else 0
