"""All tokens of a run in the order they were computed, and which step took them in.

Grows with the trace; what was read is kept. Where sequences part, it tells the line that the
cursor is on: what came before it, and the longest way on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kvtrace.analysis.course import single
from kvtrace.errors import KvtraceError
from kvtrace.trace import Trace

if TYPE_CHECKING:
    from kvtrace.analysis.branches import Branches


class Told(Struct, frozen=True):
    """One line of tokens.

    Attributes:
        texts: Raw text of every token, in order.
        steps: Number of the step that took each one in.
        current: Index of the last token that the cursor's step took in; -1: none.
        rejected: Indices of tokens that were computed and given up.
    """

    texts: list[str]
    steps: list[int]
    current: int
    rejected: frozenset[int] = frozenset()


class Chronicle:
    """Tokens of a trace, step by step.

    Attributes:
        tree: The branches, where there are any; else None.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.tree: Branches | None = None
        self._texts: list[str] = []
        self._steps: list[int] = []
        self._ends: dict[int, int] = {}
        self._read = 0

    def update(self) -> None:
        """Take in the steps that were added since."""
        numbers = self.trace.numbers
        if len(numbers) == self._read:
            return
        if self.tree is not None or not single(self.trace, self._read):
            from kvtrace.analysis.branches import branches

            self.tree = branches(self.trace)
            self._read = len(numbers)
            return
        overview = self.trace.overview
        new, tokens = overview["new"].tolist(), overview["token"].tolist()
        for row in range(self._read, len(numbers)):
            number = numbers[row]
            ids = [tokens[row]] if new[row] == 1 else self._ids(number)
            self._texts += [self.trace.token_text(token) for token in ids]
            self._steps += [number] * len(ids)
            self._ends[number] = len(self._texts)
        self._read = len(numbers)

    def told(self, number: int, sequence: int) -> Told:
        """The line of tokens that a step of a sequence is on."""
        if self.tree is None:
            return Told(self._texts, self._steps, self._ends.get(number, 0) - 1)
        texts: list[str] = []
        steps: list[int] = []
        rejected: set[int] = set()
        current, here = -1, self.tree.places.get((number, sequence))
        for index in self.tree.line(number, sequence):
            node = self.tree.nodes[index]
            start = len(texts)
            texts += [self.trace.token_text(token) for token in node.tokens]
            steps += [node.step] * len(node.tokens)
            rejected.update(range(start + node.kept, len(texts)))
            if index == here:
                current = start + max(node.kept, 1) - 1
        return Told(texts, steps, current, frozenset(rejected))

    def _ids(self, number: int) -> tuple[int, ...]:
        try:
            step = self.trace.step(number)
        except KvtraceError:
            return ()
        return step.tokens[0] if step.num_sequences else ()
