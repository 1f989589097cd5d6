"""Scores that are being followed, and whether a mode that sleeps in between would follow as well.

A family is all that came of one product: scores, logits, weights. It is open until its weights
have met the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from kvtrace.record.flow.marks.axes import Letters
from kvtrace.record.flow.marks.mark import Mark, Marks

MOST = 4096
"""Families that are remembered between two forwards; where no module runs, nobody says when one
is over."""

_PLAIN = (Tensor, nn.Parameter)


@dataclass(slots=True)
class Families:
    """Those of one forward.

    Attributes:
        announced: The function that runs was called through one that wakes the mode.
        unannounced: A product was made by a function that was not.
        by_taint: A tensor was known to be made of parameters by its history alone.
        twice: Weights met values a second time.
        odd: Something else that needs a mode that is always awake.
        inlined: A scripted function ran as Python, which it only does while a mode is awake.
        begun: Scores that were made so far.
    """

    announced: bool = False
    unannounced: bool = False
    by_taint: bool = False
    twice: bool = False
    odd: bool = False
    inlined: bool = False
    begun: int = 0
    _open: dict[int, tuple[Letters, int, bool]] = field(default_factory=dict)
    _closed: dict[int, Letters] = field(default_factory=dict)

    def look(self) -> None:
        """A forward begins."""
        self.announced = self.unannounced = self.by_taint = self.twice = self.odd = False
        self.inlined = False

    def forget(self) -> None:
        """A forward is over."""
        self._open.clear()
        self._closed.clear()

    @property
    def may_sleep(self) -> bool:
        """Whether nothing was seen that a mode would have missed asleep."""
        return not (self.unannounced or self.by_taint or self.twice or self.odd)

    def heard(self, operands: Sequence[object]) -> None:
        """Two tensors that are no parameters are multiplied."""
        if not self.announced:
            self.unannounced = True
        # a class of tensors with a say of its own may know functions by their identity
        if any(type(one) not in _PLAIN for one in operands):
            self.odd = True

    def begin(self, mark: Mark, *, heard: bool) -> None:
        """Scores were made.

        Args:
            mark: Theirs.
            heard: By a function that wakes a mode.
        """
        self._make_room()
        self.begun += 1
        self._open[id(mark.letters)] = (mark.letters, id(mark.products[0].left), heard)

    def end(self, mark: Mark) -> None:
        """Weights have met values."""
        key = id(mark.letters)
        if key in self._closed:
            self.twice = True
            return
        self._make_room()
        self._closed[key] = mark.letters
        lefts = [id(part.left) for part in mark.products]
        for one, (_, left, heard) in list(self._open.items()):
            if one == key or left in lefts:
                self.odd = self.odd or not heard
                del self._open[one]

    def _make_room(self) -> None:
        if len(self._open) + len(self._closed) >= MOST:
            self.forget()
            self.odd = True

    def live(self, marks: Marks) -> bool:
        """Whether a tensor of an open family may be there still."""
        return self.odd or (
            bool(self._open)
            and any(id(mark.letters) in self._open for _, mark in marks.held.values())
        )
