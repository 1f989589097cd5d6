"""The last token of a prompt that a loop feeds once more, where it should feed what was chosen.

A pass over the prompt tells what comes next; a loop that begins by feeding the last token again has
its row twice. Lanes are equal then, for without a cache the same tokens are fed. What tells is
that each later step feeds the likeliest token, and this one does not.
"""

from __future__ import annotations

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step
from kvtrace.trace.step import Runs

_LATER = 3
"""Steps that feed the likeliest token, at least, for a loop that chooses so."""


class LastTwice:
    """Looks at the first step after each prompt, and at whether the others feed the likeliest."""

    def __init__(self) -> None:
        self._before: Step | None = None
        self._found: list[tuple[int, int, int]] = []
        self._greedy, self._other = 0, 0

    def add(self, step: Step) -> None:
        """Take the next step in."""
        before, self._before = self._before, step
        if before is None or step.parent != before.number or step.new != 1:
            return
        fed, likeliest = _only(step.tokens), before.top[0].ids[0] if before.top else None
        if fed is None or likeliest is None:
            return
        if fed == likeliest:
            self._greedy += 1
        elif before.new > 1 and fed == before.tokens[0][-1] and _grew(before, step):
            self._found.append((step.number, fed, likeliest))
        else:
            self._other += 1

    @property
    def _chooses(self) -> bool:
        """Whether the loop is known to feed the likeliest token, this one step apart."""
        return not self._other and self._greedy >= _LATER

    def finding(self) -> Finding | None:
        """Where texts that end otherwise all begin so."""
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
        if not self._chooses or not self._found:
            return ""
        number, token, likeliest = self._found[0]
        return (
            f"step {number} was fed token {token}, as the step before it was last, and not the "
            f"likeliest, {likeliest}, as every later step: unless the prompt ends with that token "
            "twice, its last one is fed again, and attention sees it twice"
        )


def _only(tokens: tuple[tuple[int, ...], ...]) -> int | None:
    """The token of a step with one sequence."""
    return tokens[0][0] if len(tokens) == 1 and len(tokens[0]) == 1 else None


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
