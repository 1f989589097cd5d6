"""Which heads of which rank make up the heads of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np
from msgspec import Struct

from kvtrace.trace.dtypes import Array

Place = tuple[int, int]
"""(rank, as its place among those that are here; head within it)."""


class Heads(Struct, frozen=True):
    """The heads of one site, or the kv heads of one cache layer, in the order of the model.

    Attributes:
        places: Where each is.
        numbers: Which head of the whole model each is.
        every: How many the whole model has.
        twins: Pairs of places that hold the same head.
    """

    places: tuple[Place, ...]
    numbers: tuple[int, ...]
    every: int
    twins: tuple[tuple[Place, Place], ...] = ()

    @property
    def missing(self) -> tuple[int, ...]:
        """Heads of the whole model that are in no rank that is here."""
        return tuple(sorted(set(range(self.every)) - set(self.numbers)))

    def rows(self, read: Callable[[int, int | None], Array | None], head: int | None) -> Array:
        """Rows of all heads, or of one, [..., heads, rows, dim].

        Args:
            read: (rank, head of it or None for all) to its rows.
            head: Only this one.

        Raises:
            LookupError: A rank has none.
        """
        if head is not None:
            rank, own = self.places[head]
            return _there(read(rank, own))
        parts = []
        for rank, run in groupby(self.places, key=lambda place: place[0]):
            part = _there(read(rank, None))
            wanted = [own for _, own in run]
            whole = wanted == list(range(part.shape[-3]))
            parts.append(part if whole else part[..., wanted, :, :])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-3)


def _there(rows: Array | None) -> Array:
    if rows is None:
        raise LookupError
    return rows


def side_by_side(parts: Sequence[tuple[int, int, int]]) -> Heads:
    """Heads of ranks, in their order; those that several hold are taken from the first.

    Args:
        parts: Per rank: (first head, heads, heads of the whole model); 0 of the whole: not known.
    """
    known = all(every for *_, every in parts)
    found: dict[int, Place] = {}
    twins = []
    after = 0
    for rank, (first, heads, _) in enumerate(parts):
        for own in range(heads):
            number = first + own if known else after + own
            place = found.setdefault(number, (rank, own))
            if place != (rank, own):
                twins.append((place, (rank, own)))
        after += heads
    numbers = tuple(sorted(found))
    every = max((every for *_, every in parts), default=0) if known else len(numbers)
    return Heads(tuple(found[number] for number in numbers), numbers, every, tuple(twins))


def apart(parts: Sequence[tuple[int, int, int]]) -> Heads:
    """Heads of ranks one after the other, the same ones again each time they are held."""
    places = tuple((rank, own) for rank, (_, heads, _) in enumerate(parts) for own in range(heads))
    return Heads(places, tuple(range(len(places))), len(places))


def said(numbers: Iterable[int]) -> str:
    """Numbers as people write them: "0–3, 6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
