"""How scores become weights: a softmax, exponentials over their sum, sigmoids, or by their numbers.

Each takes the mark of the scores and gives that of the weights, or none.
"""

from __future__ import annotations

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.marks.mark import Mark, Stage
from kvtrace.record.modes import unseen_by_modes

ROUNDED = 2e-2
"""How far from 1 the weights of a query may sum to in half precision."""

DIVIDED = "exp and sum"
"""What made weights that are exponentials over a sum."""

SCRIPTED = "scripted"
"""What made weights that came out of code nobody can look into."""

SIGMOIDAL = "sigmoid"
"""What made weights that are each a sigmoid of their own score."""


def normalised(mark: Mark, x: Tensor, axis: int, name: str) -> Mark | None:
    """Weights after a softmax over one axis of scores."""
    if mark.axes is None or mark.stage is not Stage.SCORES:
        return None
    return replace(
        mark,
        stage=Stage.WEIGHTS,
        logits=x,
        logits_axes=mark.axes,
        key=mark.axes[axis % x.dim()],
        normaliser=name,
    )


def exponentials(mark: Mark, logits: Tensor) -> Mark | None:
    """Scores after exp: what sums to the softmax's denominator. The axis is the last one."""
    if mark.axes is None or mark.stage is not Stage.SCORES:
        return None
    return replace(
        mark,
        stage=Stage.EXPONENTIALS,
        logits=logits,
        logits_axes=mark.axes,
        key=mark.axes[-1],
        added=True,
    )


def gates(mark: Mark, logits: Tensor) -> Mark | None:
    """Scores after a sigmoid: each is a weight by itself. What is summed over shows later."""
    if mark.axes is None or mark.stage is not Stage.SCORES:
        return None
    return replace(
        mark,
        stage=Stage.WEIGHTS,
        logits=logits,
        logits_axes=mark.axes,
        normaliser=SIGMOIDAL,
    )


def summed_over(mark: Mark, names: str, contracted: str) -> Mark:
    """Weights of a sigmoid whose keys are the axis that their product with values sums over.

    Args:
        mark: Of the weights.
        names: Their letters in the product.
        contracted: Those that it sums over.
    """
    if mark.axes is None or len(mark.axes) != len(names):
        return mark
    named = dict(zip(names, mark.axes, strict=True))
    return replace(mark, key="".join(named.get(one, "") for one in contracted))


def divided_before(mark: Mark, tensor: Tensor) -> Mark:
    """Exponentials that are weights already: the logarithm of their sum was taken off before."""
    if mark.axes is None or mark.key not in mark.axes or is_batched(tensor):
        return mark
    if not _sum_to_one(tensor, mark.axes.index(mark.key)):
        return mark
    return replace(mark, stage=Stage.WEIGHTS, normaliser="exp of the logarithm")


def opaque(mark: Mark, weights: Tensor) -> Mark | None:
    """Weights that came out of something that can't be looked into, told by their numbers."""
    if mark.axes is None:
        return None
    if not _sum_to_one(weights, -1, positive=True):
        return None
    return replace(
        mark,
        stage=Stage.WEIGHTS,
        key=mark.axes[-1],
        logits_axes=mark.axes,
        normaliser=SCRIPTED,
    )


def _sum_to_one(weights: Tensor, axis: int, *, positive: bool = False) -> bool:
    with unseen_by_modes():
        if positive and not bool((weights >= 0).all()):
            return False
        sums = weights.detach().float().sum(axis)
        return not float((sums - 1).abs().amax()) > ROUNDED


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a running vmap, where single rows can't be read."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))
