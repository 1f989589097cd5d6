"""What a module chose for each token of a step: which experts, which slots."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable

from msgspec import Struct


class Picks(Struct, frozen=True):
    """One choice of a forward, made for every token.

    Attributes:
        module: Path of the module whose code chooses.
        number: How many selections the same module made before in the forward.
        options: How many there were to choose from.
        picks: How many are picked for a token.
        packed: Their numbers, [sequences, new, picks], as base64 of two bytes each, low one first.
    """

    module: str
    number: int
    options: int
    picks: int
    packed: str

    @classmethod
    def of(cls, module: str, number: int, options: int, picks: int, chosen: Iterable[int]) -> Picks:
        """A choice of numbers below 65,536."""
        packed = b64encode(_low_first(array("H", chosen)).tobytes()).decode("ascii")
        return cls(module, number, options, picks, packed)

    def fits(self, tokens: int) -> bool:
        """Whether it is one of so many tokens."""
        size = 2 * tokens * self.picks
        known = 0 < self.picks <= self.options <= 1 << 16 and self.number >= 0
        if not known or len(self.packed) != 4 * -(-size // 3):
            return False
        try:
            return len(b64decode(self.packed, validate=True)) == size
        except ValueError:
            return False

    def picked(self, token: int) -> frozenset[int]:
        """What was picked for one token.

        Args:
            token: Its number in the step, sequence by sequence.
        """
        # four characters hold three bytes: those around the token's
        start, end = 2 * token * self.picks, 2 * (token + 1) * self.picks
        first = start // 3
        raw = b64decode(self.packed[4 * first : 4 * -(-end // 3)])
        here = array("H")
        here.frombytes(raw[start - 3 * first : end - 3 * first])
        return frozenset(_low_first(here))


def _low_first(numbers: array[int]) -> array[int]:
    """Numbers in this machine's order of bytes, or from it, as they are stored."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
