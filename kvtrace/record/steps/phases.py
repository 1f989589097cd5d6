"""Prefill or decode: whether a forward runs over a prompt, or extends it."""

from __future__ import annotations

import threading

from kvtrace.record.cache.step import LedgerStep
from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.tokens.positions import Positions
from kvtrace.trace import Step

_FEWEST_DRAFTS, _MOST_DRAFTS = 3, 32
"""Tokens of a step that may be drafts, the one before them included."""


class Phases(threading.local):
    """Tells the phases apart; a loop that knows its prompt says how long it is, in its thread."""

    def __init__(self) -> None:
        self._prompt_rows: int | None = None
        self._taken_in = False  # all of the prompt, by a forward before

    @property
    def prompt_rows(self) -> int | None:
        """Tokens of the prompt under way, padding included; None: nobody said."""
        return self._prompt_rows

    @prompt_rows.setter
    def prompt_rows(self, count: int | None) -> None:
        self._prompt_rows, self._taken_in = count, False

    def of(self, forward: Forward, positions: Positions, entry: LedgerStep, grown: int) -> str:
        """The phase of a forward, by its name in the trace.

        Args:
            forward: It.
            positions: Of its tokens.
            entry: What it did to the caches.
            grown: Tokens that it has more than the one before, where it begins with those; else 0.
        """
        past = max([group.length_before for group in entry.groups], default=0)
        start = max([row[0] for row in positions if row], default=0)
        taken_in = self._taken_in
        if self.prompt_rows is not None and forward.part == "model":
            self._taken_in = taken_in or start + forward.new >= self.prompt_rows
        if forward.part == "encoder" or (past == 0 and start == 0 and forward.new > 0):
            whole = self.prompt_rows is not None and past == 0 and not forward.updates
            longer = whole and forward.new > (self.prompt_rows or 0)
            # a model without a cache computes all tokens again, and extends them all the same
            longer = longer or (self.prompt_rows is None and grown == 1)
            return "decode" if longer and forward.part == "model" else "prefill"
        if self.prompt_rows is not None:
            # a text beside it (classifier-free guidance) may begin with its last token
            beside = taken_in and past > 0 and forward.new == 1
            return "decode" if beside or start >= self.prompt_rows else "prefill"
        return "decode" if forward.new == 1 or _all_chosen(forward) else "prefill"

    def decodes(self, new: int, before: Step) -> bool:
        """Whether `new` tokens after a step continue it, instead of being more of a prompt."""
        if self.prompt_rows is None:
            return new == 1
        ends = [row[-1] + 1 for row in before.positions if row]
        return bool(ends) and max(ends) >= self.prompt_rows


def _all_chosen(forward: Forward) -> bool:
    """Whether each token is the likeliest after the one before it: drafts, all of which stay.

    A few tokens of a prompt may be so by chance, and so might one alone.
    """
    logits, tokens = forward.logits, forward.tokens
    if logits is None or tokens is None or not _FEWEST_DRAFTS <= forward.new <= _MOST_DRAFTS:
        return False
    if logits.dim() != 3 or tokens.shape != logits.shape[:2]:
        return False
    chosen = logits[:, :-1].argmax(-1)
    return bool((chosen == tokens[:, 1:].to(chosen.device)).all())
