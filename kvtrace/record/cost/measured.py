"""The sizes of a forward that is over: all that its cost depends on."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from msgspec import Struct

from kvtrace.record.capture.attention.calls import AttentionCall


class Measured(Struct, frozen=True):
    """One forward.

    Attributes:
        calls: Its attention calls; those of an encoder that ran just before it, too.
        sequences, new: Tokens in.
        past: Tokens of the same sequences that earlier forwards took in.
        logits: Shape of the logits; None without any.
        alike: (modules, rows attended to) where the model's own calls all attended to as many,
            each module once; None: the calls tell.
    """

    calls: Sequence[AttentionCall]
    sequences: int
    new: int
    past: int
    logits: tuple[int, ...] | None = None
    alike: tuple[Sequence[str], int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens so far, per sequence."""
        return self.past + self.new

    @property
    def logit_rows(self) -> int:
        """Rows of logits, over all sequences."""
        return prod(self.logits[:-1]) if self.logits else 0

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder's own pass: no logits, and nothing but encoder attention."""
        if self.logits is not None or self.alike is not None or not self.calls:
            return False
        return all(call.kind == "encoder" for call in self.calls)

    @property
    def starts(self) -> bool:
        """Whether work that is done once for each sequence was done here."""
        if self.past == 0 or self.alike is not None:
            return self.past == 0
        return "encoder" in [call.kind for call in self.calls]

    @property
    def modules(self) -> Sequence[str]:
        """Path of the module of each call."""
        if self.alike is not None:
            return self.alike[0]
        return [call.module for call in self.calls]

    @property
    def layers(self) -> frozenset[str]:
        """Paths of the modules that attended to the text itself."""
        if self.alike is not None:
            return frozenset(self.alike[0])
        return frozenset(call.module for call in self.calls if call.kind == "self")

    def rows(self, places: Sequence[int]) -> int:
        """Rows attended to, over some of the calls."""
        if self.alike is not None:
            return self.alike[1] * len(places)
        return sum([self.calls[place].keys.size(2) for place in places])

    def attended(self, module: str) -> int:
        """Rows that a module's last attention call attended to."""
        found = [call.keys.shape[2] for call in self.calls if call.module == module]
        return int(found[-1]) if found else self.tokens
