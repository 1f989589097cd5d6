"""All tokens of a run in the order they were computed, and which step took them in.

Grows with the trace; what was read is kept.
"""

from __future__ import annotations

from kvtrace.errors import KvtraceError
from kvtrace.trace import Trace


class Chronicle:
    """Tokens of one sequence of a trace, step by step.

    Attributes:
        texts: Raw text of every token, in order.
        steps: Number of the step that took each one in.
    """

    def __init__(self, trace: Trace, sequence: int) -> None:
        self.trace, self.sequence = trace, sequence
        self.texts: list[str] = []
        self.steps: list[int] = []
        self._ends: dict[int, int] = {}
        self._read = 0

    def update(self) -> None:
        """Take in the steps that were added since."""
        numbers = self.trace.numbers
        if len(numbers) == self._read:
            return
        overview = self.trace.overview
        new, tokens = overview["new"].tolist(), overview["token"].tolist()
        for row in range(self._read, len(numbers)):
            number = numbers[row]
            ids = [tokens[row]] if self.sequence == 0 and new[row] == 1 else self._ids(number)
            self.texts += [self.trace.token_text(token) for token in ids]
            self.steps += [number] * len(ids)
            self._ends[number] = len(self.texts)
        self._read = len(numbers)

    def current(self, number: int) -> int:
        """Index of the last token a step took in; -1: none."""
        return self._ends.get(number, 0) - 1

    def _ids(self, number: int) -> tuple[int, ...]:
        try:
            step = self.trace.step(number)
        except KvtraceError:
            return ()
        return step.tokens[self.sequence] if self.sequence < step.num_sequences else ()
