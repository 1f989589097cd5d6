"""Tensors of any layout as [sequences, heads, rows, dim].

The letters say which axis belongs together; the batch size and the number of new tokens say
which of them are sequences and queries. Where sizes coincide so that two readings are possible,
`Ambiguous` is raised: a guess would be a lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from kvtrace.record.flow.axes import Axes, Letters


class Ambiguous(Exception):
    """Two axes could play the same role."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which letters are what.

    Attributes:
        batch, heads: Letters of sequences and of query heads, kv heads first.
        query, key: Letters of rows and of attended rows.
    """

    batch: str
    heads: str
    query: str
    key: str


def _letters(axes: Axes, letters: Letters) -> list[str]:
    """All letters with more than one entry, in order."""
    every = "".join(letters.whole(axis) for axis in axes)
    return [letter for letter in every if letters.sizes[letter] > 1]


def roles(  # noqa: PLR0913 - what one attention is described by
    weights: Axes, query: Axes, key: str, key_axes: Axes, letters: Letters, batch: int, new: int
) -> Roles:
    """Tell batch, heads and query among the axes of attention weights.

    Args:
        weights: Axes of the weights.
        query: Axes of the operand that holds the queries.
        key: Letters of the softmax axis.
        key_axes: Axes of the operand that holds the keys.
        letters: Their letters; a merged batch × heads or group × query axis is split here.
        batch: Sequences in this forward.
        new: Tokens in, per sequence.

    Raises:
        Ambiguous: Two axes could be the query axis or the batch axis.
    """
    row = _split_off(_query_letter(query, key_axes, letters, new), letters, inner=new)
    in_key = set(_letters(key_axes, letters))
    rest = [x for x in _letters(weights, letters) if x != row and x not in letters.whole(key)]
    sequence = _batch_letter(rest, in_key, letters, batch)
    if sequence:
        if letters.sizes[sequence] != batch:
            parts = letters.new(batch) + letters.new(letters.sizes[sequence] // batch)
            letters.parts[sequence] = parts
            at = rest.index(sequence)
            rest[at : at + 1] = list(parts)
            sequence = parts[0]
            in_key = set(_letters(key_axes, letters))
        rest.remove(sequence)
    heads = [x for x in rest if x in in_key] + [x for x in rest if x not in in_key]
    return Roles(sequence, "".join(heads), row, letters.whole(key))


def _query_letter(query: Axes, key_axes: Axes, letters: Letters, new: int) -> str:
    if new == 1:
        return ""
    shared = set(_letters(key_axes, letters))
    free = [x for x in _letters(query, letters) if x not in shared]
    exact = [x for x in free if letters.sizes[x] == new]
    several = exact or [x for x in free if letters.sizes[x] % new == 0]
    if len(several) != 1:
        raise Ambiguous(f"{len(several)} axes could hold the {new} queries")
    return several[0]


def _split_off(letter: str, letters: Letters, inner: int) -> str:
    """The query part of a merged groups × queries axis."""
    if not letter or letters.sizes[letter] == inner:
        return letter
    parts = letters.new(letters.sizes[letter] // inner) + letters.new(inner)
    letters.parts[letter] = parts
    return parts[1]


def _batch_letter(rest: list[str], in_key: set[str], letters: Letters, batch: int) -> str:
    if batch == 1:
        return ""
    shared = [x for x in rest if x in in_key]
    exact = [x for x in shared if letters.sizes[x] == batch]
    if exact:
        # [batch, heads] is the universal order; with equal sizes the outer one is the batch
        return exact[0]
    merged = [x for x in shared if letters.sizes[x] % batch == 0]
    if len(merged) != 1:
        raise Ambiguous(f"{len(merged)} axes could hold the {batch} sequences")
    return merged[0]


def arranged(tensor: Tensor, axes: Axes, letters: Letters, groups: tuple[str, ...]) -> Tensor:
    """A tensor as four axes, each of the letters of one group; a missing letter counts once.

    Args:
        tensor: Any layout.
        axes: Letters of each axis.
        letters: Their sizes.
        groups: Letters of sequences, heads, rows, features.
    """
    sizes: dict[str, int] = {}
    for axis, size in zip(axes, tensor.shape, strict=True):
        if size == 1:
            continue
        parts = [letter for letter in letters.whole(axis) if letters.sizes[letter] > 1]
        # an axis that was sliced (a dropped sink column) is shorter than its one letter
        sizes |= {parts[0]: size} if len(parts) == 1 else {x: letters.sizes[x] for x in parts}
    present = [[letter for letter in group if letter in sizes] for group in groups]
    order = list(sizes)
    split = tensor.reshape(list(sizes.values()))
    sorted_axes = split.permute([order.index(letter) for group in present for letter in group])
    return sorted_axes.reshape([prod(sizes[letter] for letter in group) for group in present])
