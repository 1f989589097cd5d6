"""Scores on their way from q·kᵀ to weights: what they are made of and what was done to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from kvtrace.record.flow.axes import Axes, Letters
from kvtrace.record.flow.contraction import Contraction


class Stage(Enum):
    """How far scores have come."""

    SCORES = "scores"
    EXPONENTIALS = "exponentials"
    WEIGHTS = "weights"


@dataclass(slots=True)
class Product:
    """One q·kᵀ: the operands and the letters of their axes."""

    left: Tensor
    right: Tensor
    left_axes: Axes
    right_axes: Axes
    alpha: float


@dataclass(slots=True)
class Scores:
    """A tensor that may turn out to be attention scores.

    Attributes:
        products: The products it sums up (two for an absorbed latent and a rotary part).
        letters: Letters of all axes.
        operations: What was done, in order: ("mul", 0.125), ("tanh", None), ("add", None) …
        logits: What the softmax was given; None before.
        logits_axes: Its axes.
        key: Letters of the softmax axis; empty before.
        normaliser: Function that made them weights.
        place: "file.py:line" where the scores were computed.
    """

    products: list[Product]
    letters: Letters
    operations: list[tuple[str, float | None]] = field(default_factory=list)
    logits: Tensor | None = None
    logits_axes: Axes = ()
    key: str = ""
    normaliser: str = ""
    place: str = ""


@dataclass(slots=True)
class Mark:
    """What is known of one tensor: whose scores it carries, and which axis is which."""

    scores: Scores
    stage: Stage
    axes: Axes | None


def start(product: Contraction, place: str) -> Mark:
    """Scores made by a product of two tensors that are not parameters."""
    letters = Letters()
    names = {letter: letters.new(size) for letter, size in product.sizes().items()}
    left = tuple(names[letter] for letter in product.left_axes)
    right = tuple(names[letter] for letter in product.right_axes)
    axes = tuple(names[letter] for letter in product.out_axes)
    part = Product(product.left, product.right, left, right, product.alpha)
    return Mark(Scores([part], letters, place=place), Stage.SCORES, axes)


def added(first: Mark, second: Mark) -> Mark | None:
    """The sum of two score tensors: their products side by side, axes named alike.

    None when the axes can't be matched one to one.
    """
    if first.axes is None or second.axes is None or len(first.axes) != len(second.axes):
        return None
    if second.scores.letters.parts:
        return None
    mine, theirs = first.scores.letters, second.scores.letters
    names: dict[str, str] = {}
    for one, other in zip(first.axes, second.axes, strict=True):
        if len(other) != 1 or mine.size(one) != theirs.size(other):
            return None
        names[other] = one
    for letter, size in theirs.sizes.items():
        if letter not in names:
            names[letter] = mine.new(size)
    for part in second.scores.products:
        left = tuple("".join(names[letter] for letter in axis) for axis in part.left_axes)
        right = tuple("".join(names[letter] for letter in axis) for axis in part.right_axes)
        first.scores.products.append(Product(part.left, part.right, left, right, part.alpha))
    first.scores.operations += [*second.scores.operations, ("sum", None)]
    return first


def scale_and_softcap(scores: Scores) -> tuple[float, float | None]:
    """The factor on q·kᵀ and the cap, from the operations with numbers before any addition.

    softcap · tanh(scale · q·kᵀ / softcap) leaves a factor before the tanh and one after it.
    """
    factor, before = scores.products[0].alpha, None
    for name, number in scores.operations:
        if name == "mul" and number is not None:
            factor *= number
        elif name == "tanh":
            before, factor = factor, 1.0
        elif name not in ("cast", "sum"):
            break
    if before is None:
        return factor, None
    return before * factor, factor
