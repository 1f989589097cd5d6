"""Which axis of a tensor is which, followed through views.

An axis is named by one or more letters (`"bh"` is batch and heads merged, outermost first); a
letter has a size. Reshapes merge letters or split one into parts, concatenation lengthens one.
When a view can't be followed the names are lost, which is said by None: a wrong name would be
worse. An axis that was broadcast from size 1 has no letter: `""`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

Axes = tuple[str, ...]


def _unused_letters() -> Iterator[str]:
    """Letters that no einsum of a user can contain."""
    return (chr(0x1000 + n) for n in count())


@dataclass(slots=True)
class Letters:
    """The letters of one attention: their sizes, and what became of them.

    Attributes:
        sizes: Size of each letter.
        parts: A letter that a reshape has split, and what it became, outermost first.
        longer: A letter that concatenation made longer: what it was, and the entries before.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    longer: dict[str, tuple[str, int]] = field(default_factory=dict)
    _fresh: Iterator[str] = field(default_factory=_unused_letters)

    def new(self, size: int) -> str:
        """A letter nobody uses yet."""
        letter = next(self._fresh)
        self.sizes[letter] = size
        return letter

    def whole(self, letters: str) -> str:
        """The letters after all splits."""
        if not self.parts:
            return letters
        done = ""
        for letter in letters:
            done += self.whole(self.parts[letter]) if letter in self.parts else letter
        return done

    def size(self, letters: str) -> int:
        """Product of their sizes."""
        product = 1
        for letter in letters:
            product *= self.sizes[letter]
        return product

    def split(self, letter: str, inner: int) -> list[str]:
        """Split a letter in two, the inner one of a given size; outer and inner letter."""
        both = [self.new(self.sizes[letter] // inner), self.new(inner)]
        self.parts[letter] = "".join(both)
        return both

    def lengthened(self, letter: str, before: int, size: int) -> str:
        """The letter of an axis that concatenation made longer."""
        longer = self.new(size)
        self.longer[longer] = (letter, before)
        return longer

    def cut(self, letters: str, start: int, size: int) -> str | None:
        """Letters of a slice of an axis; None when it can't be followed."""
        if size == self.size(letters):
            return letters
        base, before = self.longer.get(letters, ("", 0))
        return base if base and before == start and self.size(base) == size else None

    def before(self, letters: str) -> str:
        """The letters before any concatenation."""
        return self.longer[letters][0] if letters in self.longer else letters

    def reshape(self, axes: Axes, shape: Sequence[int]) -> Axes | None:
        """Axes after a reshape to `shape`; None when they can't be followed."""
        queue = [letter for axis in axes for letter in self.whole(axis) if self.sizes[letter] != 1]
        out: list[str] = []
        for wanted in shape:
            axis, have = "", 1
            while have < wanted:
                if not queue:
                    return None
                letter = queue.pop(0)
                missing = wanted // have
                size = self.sizes[letter]
                if wanted % have == 0 and size > missing and size % missing == 0:
                    parts = self.split(letter, size // missing)
                    letter, size = parts[0], missing
                    queue.insert(0, parts[1])
                axis, have = axis + letter, have * size
            if have != wanted:
                return None
            out.append(axis)
        return None if queue else tuple(out)


def permuted(axes: Axes, order: Sequence[int]) -> Axes:
    """Axes after `permute`."""
    return tuple(axes[place] for place in order)


def swapped(axes: Axes, first: int, second: int) -> Axes:
    """Axes after `transpose`."""
    order = list(range(len(axes)))
    order[first], order[second] = order[second], order[first]
    return permuted(axes, order)
