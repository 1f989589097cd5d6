"""What is known of a tensor on its way from q·kᵀ to the output, and where that is kept.

A mark is immutable: every operation makes a new one, so two branches never disturb each other.
Marks hang on tensors by identity and vanish with them; nothing is written onto a tensor.
"""

from __future__ import annotations

import weakref
from enum import Enum

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.marks.axes import Axes, Letters
from kvtrace.record.flow.marks.contraction import Contraction, Unfinished
from kvtrace.record.modes import unseen_by_modes


class Stage(Enum):
    """How far it has come."""

    PRODUCT = "an elementwise product that may be summed"
    SCORES = "scores"
    EXPONENTIALS = "exponentials"
    WEIGHTS = "weights"
    MIXED = "products of weights and values, not summed yet"
    UNDIVIDED = "exponentials · values, not divided by their sum yet"


class Product(Struct, frozen=True):
    """One q·kᵀ: the operands, the letters of their axes, the factor on it, and its line of code."""

    left: Tensor
    right: Tensor
    left_axes: Axes
    right_axes: Axes
    alpha: float
    place: str = ""


class Mark(Struct, frozen=True):
    """What is known of one tensor.

    Attributes:
        stage: How far it has come.
        letters: Letters of all axes.
        axes: Letters of each axis; None: lost in a view that can't be followed.
        products: The products it sums up (two for an absorbed latent and a rotary part).
        cap: softcap · tanh(…) seen so far: the factor after tanh; None without tanh.
        added: Something was added to the scores: a bias is to be expected.
        changed: What was done after the softmax that is no view, in order.
        logits: What the softmax was given; None before.
        logits_axes: Its axes.
        key: Letters of the softmax axis; empty before.
        weights: What the softmax made, once something random came after it.
        normaliser: Function that made them weights.
        mixed: A product that is not summed, or not divided, yet.
        base: What the softmax made, once it was multiplied by something.
        terms: What several softmaxes made, of which these weights are the sum.
    """

    stage: Stage
    letters: Letters
    axes: Axes | None
    products: tuple[Product, ...] = ()
    cap: float | None = None
    added: bool = False
    changed: tuple[str, ...] = ()
    logits: Tensor | None = None
    logits_axes: Axes = ()
    key: str = ""
    weights: Tensor | None = None
    normaliser: str = ""
    mixed: Unfinished | None = None
    base: Term | None = None
    terms: tuple[Term, ...] = ()

    def scaled(self, factor: float) -> Mark:
        """After a multiplication by a number."""
        if self.cap is not None:
            return replace(self, cap=self.cap * factor)
        parts = tuple(replace(part, alpha=part.alpha * factor) for part in self.products)
        return replace(self, products=parts)

    def capped(self) -> Mark:
        """After tanh."""
        return replace(self, cap=1.0)

    @property
    def scale(self) -> float:
        """Factor on the first product, softcap taken out."""
        return self.products[0].alpha * (1.0 if self.cap is None else self.cap)


class Term(Struct, frozen=True):
    """What one softmax made, and the mark of that."""

    weights: Tensor
    mark: Mark


def start(product: Contraction, place: str = "") -> Mark:
    """Scores made by a product of two tensors that are not parameters, at a place in the code."""
    letters = Letters()
    names = {letter: letters.new(size) for letter, size in product.sizes().items()}
    sizes = product.sizes()
    left = _operand(product.left, product.left_axes, names, sizes)
    right = _operand(product.right, product.right_axes, names, sizes)
    axes = tuple(names[letter] for letter in product.out_axes)
    part = Product(product.left, product.right, left, right, product.alpha, place)
    return Mark(Stage.SCORES, letters, axes, (part,))


def _operand(tensor: Tensor, axes: str, names: dict[str, str], sizes: dict[str, int]) -> Axes:
    """Letters of an operand; a broadcast axis has none."""
    return tuple(
        "" if size == 1 and sizes[letter] != 1 else names[letter]
        for letter, size in zip(axes, tensor.shape, strict=True)
    )


def summed(first: Mark, second: Mark) -> Mark:
    """The sum of two score tensors: their products side by side, axes named alike.

    Where the axes can't be matched one to one, or the second is not linear in its product any
    more, the second counts as a bias of the first. So does one of a table that has a row for each
    pair of a query and a key, as relative positions have: no such row is that of a key. And so does
    another product of the same queries.
    """
    as_bias = replace(first, added=True)
    if first.axes is None or second.axes is None or len(first.axes) != len(second.axes):
        return as_bias
    if second.letters.parts or first.cap is not None or second.cap is not None:
        return as_bias
    mine, theirs = first.letters, second.letters
    names: dict[str, str] = {}
    for one, other in zip(first.axes, second.axes, strict=True):
        if theirs.size(other) == 1:
            continue
        if len(other) != 1 or mine.size(one) != theirs.size(other):
            return as_bias
        names[other] = one
    for letter, size in tuple(theirs.sizes.items()):  # they may be those of the first, too
        if letter not in names:
            names[letter] = mine.new(size)
    parts = tuple(
        replace(
            part,
            left_axes=tuple("".join(names[letter] for letter in axis) for axis in part.left_axes),
            right_axes=tuple("".join(names[letter] for letter in axis) for axis in part.right_axes),
        )
        for part in second.products
    )
    table = _table_of(first, parts)
    if table is None:
        return replace(first, products=first.products + parts, added=first.added or second.added)
    return replace(second, added=True) if table is first else as_bias


def _table_of(first: Mark, parts: tuple[Product, ...]) -> Mark | tuple[Product, ...] | None:
    """Which of two, scores or products to add to them, is one of a table; None: neither is."""
    assert first.axes is not None
    rows = _rows_of_same(first.products[0], parts[0])
    if rows is not None:
        return first if _is_table(*rows, first) else parts
    tables = any(_of_pairs(part, first.products[0]) for part in parts)
    if any(_of_pairs(part, parts[0]) for part in first.products):
        # to each the other looks like one: rows of queries and of keys are neighbours
        nearer = _apart(first.axes, first.products[0]) <= _apart(first.axes, parts[0])
        return parts if tables and nearer else first
    return parts if tables else None


def _of_pairs(product: Product, plain: Product) -> bool:
    """Whether one of its operands has an axis for the queries, and one for the keys, of another."""
    pair = _pair(plain)
    return len(pair) > 1 and any(
        pair <= _letters(axes) for axes in (product.left_axes, product.right_axes)
    )


_Side = tuple[Tensor, Axes]


def _rows_of_same(first: Product, second: Product) -> tuple[_Side, _Side] | None:
    """What either product multiplies the same queries with: keys, and a table; None: it does not.

    Queries of a latent and a rotary part are others, and each part has keys of its own.
    """
    for one, mine in _either(first):
        for other, theirs in _either(second):
            if _same_numbers(one[0], other[0]) and not _same_numbers(mine[0], theirs[0]):
                return mine, theirs
    return None


def _either(product: Product) -> tuple[tuple[_Side, _Side], ...]:
    left, right = (product.left, product.left_axes), (product.right, product.right_axes)
    return (left, right), (right, left)


def _is_table(rows: _Side, others: _Side, scores: Mark) -> bool:
    """Whether rows that meet the same queries as others are those of the table.

    It has an axis of the queries, which is neighbour to that of the keys. With a single query it
    has none, and is at most as large as the keys: the same for all heads, say.
    """
    sizes, axes = scores.letters.sizes, scores.axes or ()
    mine, theirs = (
        {x for x in _letters(one) if sizes.get(x, 1) > 1} for one in (rows[1], others[1])
    )
    shared = [place for place, axis in enumerate(axes) if mine & theirs & set(axis)]
    beside = {x for at in shared for axis in axes[max(0, at - 1) : at + 2] for x in axis}
    has, have = bool(beside & mine - theirs), bool(beside & theirs - mine)
    return has if has != have else rows[0].numel() < others[0].numel()


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two operands hold the same in the same order, whatever axes are merged."""
    if one.dtype != other.dtype or one.device != other.device or one.numel() != other.numel():
        return False
    with unseen_by_modes():
        return torch.equal(one.reshape(-1), other.reshape(-1))


def _pair(product: Product) -> set[str]:
    """Letters that only one of its operands has: those of queries and of keys."""
    left, right = _letters(product.left_axes), _letters(product.right_axes)
    return left ^ right if left - right and right - left else set()


def _apart(axes: Axes, product: Product) -> int:
    """How far the axes of queries and of keys stand apart."""
    places = [place for place, axis in enumerate(axes) if _pair(product) & set(axis)]
    return max(places, default=0) - min(places, default=0)


def _letters(axes: Axes) -> set[str]:
    return {letter for axis in axes for letter in axis}


class Marks:
    """Marks by the identity of their tensors; they go when the tensor goes.

    Attributes:
        held: By the id of the tensor. Read it where speed counts.
    """

    def __init__(self) -> None:
        self.held: dict[int, tuple[weakref.ref[Tensor], Mark]] = {}

    def __len__(self) -> int:
        return len(self.held)

    def get(self, tensor: object) -> Mark | None:
        """The mark of a tensor, if it has one."""
        found = self.held.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def set(self, tensor: Tensor, mark: Mark) -> None:
        """Mark a tensor."""
        key, of = id(tensor), self.held

        def forget(gone: weakref.ref[Tensor]) -> None:
            held = of.get(key)
            if held is not None and held[0] is gone:
                del of[key]

        of[key] = (weakref.ref(tensor, forget), mark)

    def clear(self) -> None:
        """Forget everything."""
        self.held.clear()
