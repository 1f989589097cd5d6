"""Steps that a trace lacks, told by the numbers of those that it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

MOST_TOLD = 1000


def gaps(numbers: Sequence[int]) -> Iterator[int]:
    """Numbers that are missing before and between ascending ones: a recording counts from 0.

    A made-up number may be far beyond any run, so there may be too many to keep.
    """
    if len(numbers) and numbers[-1] == len(numbers) - 1:
        return
    for before, after in pairwise((-1, *numbers)):
        yield from range(before + 1, after)
