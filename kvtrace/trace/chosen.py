"""Which token was chosen after a step: recorded in it, noted later, or fed to its successor."""

from __future__ import annotations

from kvtrace.trace.drafts import verifies
from kvtrace.trace.source import Source

_CHILDREN = 8
"""Steps that go on from one and are looked at: those of texts that take turns."""


class Chosen:
    """The chosen tokens of a trace; notes are read once."""

    __slots__ = ("_noted", "_read", "_source")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._noted: dict[tuple[int | None, int], int] = {}
        self._read = 0

    def after(self, number: int, sequence: int) -> int | None:
        """The token chosen after a step of a sequence, or else fed next; None while unknown.

        Raises:
            MissingError: There is no such step.
        """
        known = self._said(number, sequence)
        known = self._by_what_was_fed(number, sequence) if known is None else known
        return None if known is None or known < 0 else known

    def told(self, number: int, sequence: int) -> int | None:
        """The token that whoever chose it said to be chosen; None: nobody said.

        Raises:
            MissingError: There is no such step.
        """
        known = self._said(number, sequence)
        return None if known is None or known < 0 else known

    def _said(self, number: int, sequence: int) -> int | None:
        """The same; below 0 where it was said that none was."""
        chosen = self._source.step(number).chosen
        known = chosen[sequence] if sequence < len(chosen) else None
        return self._by_note(number, sequence) if known is None else known

    def _by_note(self, number: int, sequence: int) -> int | None:
        notes = self._source.notes
        for note in notes[self._read :]:
            if note.kind == "chosen" and note.text.isdecimal() and len(note.text) < 20:
                self._noted.setdefault((note.step, note.sequence), int(note.text))
        self._read = len(notes)
        return self._noted.get((number, sequence))

    def _by_what_was_fed(self, number: int, sequence: int) -> int | None:
        """The token fed next to a sequence; None: nobody went on, or several, with other tokens.

        Texts that are decoded in turns have each other's steps in between. Where the very next
        step goes on from this one, others that do so later took another way than the run itself.
        """
        overview = self._source.overview()
        children = overview["number"][overview["parent"] == number].tolist()
        later = overview["number"][overview["number"] > number]
        if len(later) and later[0] in children:
            children = [int(later[0])]
        fed = {self._first(child, sequence) for child in children[:_CHILDREN]}
        return fed.pop() if len(fed) == 1 else None

    def _first(self, child: int, sequence: int) -> int | None:
        step = self._source.step(child)
        reordered = any(event.kind != "crop" for event in step.events)
        if reordered or sequence >= step.num_sequences or not step.new:
            return None
        if step.phase != "decode" and not verifies(self._source, step):
            return None
        return step.tokens[sequence][0]
