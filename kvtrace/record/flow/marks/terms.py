"""Softmaxes that become terms of a sum: each before it was multiplied, and single heads of one."""

from __future__ import annotations

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.marks.axes import Axes, Letters
from kvtrace.record.flow.marks.mark import Mark, Product, Stage, Term


def term(mark: Mark, weights: Tensor) -> Term:
    """What a softmax made, before it was multiplied by anything."""
    return mark.base or Term(weights, mark)


def added_up(first: tuple[Tensor, Mark], second: tuple[Tensor, Mark]) -> Mark | None:
    """The mark of the sum, or the difference, of two weights of softmaxes."""
    (x, one), (y, other) = first, second
    if one.axes is None or other.axes is None or x.shape != y.shape:
        return None
    return replace(one, terms=(*_terms(one, x), *_terms(other, y)))


def _terms(mark: Mark, weights: Tensor) -> tuple[Term, ...]:
    return mark.terms or (term(mark, weights),)


def part_of(mark: Mark, x: Tensor, piece: Tensor) -> Mark | None:
    """The mark of some heads of weights: every other one, the first half, one of a pair.

    Args:
        mark: Of the weights.
        x: They.
        piece: A view of them, of fewer entries of one axis, or of one without the axis.

    Returns:
        None where it can't be followed.
    """
    where = _where(x, piece)
    plain = mark.weights is None and mark.base is None and not mark.terms
    if where is None or mark.axes is None or mark.stage is not Stage.WEIGHTS or not plain:
        return None
    place, start, step, count = where
    letters, axis = mark.letters, mark.letters.whole(mark.axes[place])
    if not axis or set(axis) & set(letters.whole(mark.key)):
        return None
    if count == 0:
        picked, rest, index = axis, "", start
    elif step > 1:
        rest, picked = _split(letters, axis, step)
        index = start
    else:
        picked, rest = _split(letters, axis, count)
        index = start // count
    fits = len(picked) == 1 and (count == 0 or letters.size(rest) == count)
    if not fits or (step == 1 and count and start % count):
        return None
    axes = [rest if n == place else one for n, one in enumerate(mark.axes)]
    if count == 0:
        del axes[place]
    logits, logits_axes = mark.logits, mark.logits_axes
    if logits is not None:
        logits, logits_axes = _taken(logits, logits_axes, letters, (picked, index))
    products = tuple(_product(one, letters, (picked, index)) for one in mark.products)
    return replace(
        mark, axes=tuple(axes), logits=logits, logits_axes=logits_axes, products=products
    )


def _where(x: Tensor, piece: Tensor) -> tuple[int, int, int, int] | None:
    """(axis, first entry, step, entries) of a view; no entries where the axis is gone."""
    offset = int(piece.storage_offset() - x.storage_offset())
    if piece.data_ptr() - x.data_ptr() != offset * x.element_size() or offset < 0:
        return None
    shape, strides = tuple(x.shape), x.stride()
    if piece.dim() == x.dim() - 1:
        for place in range(x.dim()):
            rest = shape[:place] + shape[place + 1 :], strides[:place] + strides[place + 1 :]
            index = offset // max(1, strides[place])
            if rest == (tuple(piece.shape), piece.stride()) and index < shape[place]:
                return place, index, 1, 0
        return None
    differ = [n for n in range(min(x.dim(), piece.dim())) if shape[n] != piece.shape[n]]
    if piece.dim() != x.dim() or len(differ) != 1:
        return None
    place = differ[0]
    step = piece.stride(place) // max(1, strides[place])
    return place, offset // max(1, strides[place]), step, int(piece.shape[place])


def _split(letters: Letters, axis: str, inner: int) -> tuple[str, str]:
    """An axis as two letters, the inner one of a size; empty where that does not go."""
    if len(axis) == 2 and letters.sizes[axis[1]] == inner:
        return axis[0], axis[1]
    if len(axis) != 1 or letters.sizes[axis] % inner:
        return "", ""
    outer, inside = letters.split(axis, inner)
    return outer, inside


def _product(one: Product, letters: Letters, pick: tuple[str, int]) -> Product:
    left, left_axes = _taken(one.left, one.left_axes, letters, pick)
    right, right_axes = _taken(one.right, one.right_axes, letters, pick)
    return Product(left, right, left_axes, right_axes, one.alpha, one.place)


def _taken(
    tensor: Tensor, axes: Axes, letters: Letters, pick: tuple[str, int]
) -> tuple[Tensor, Axes]:
    """One entry of a letter; a tensor without that letter as it is."""
    letter, index = pick
    for place, axis in enumerate(axes):
        whole = letters.whole(axis)
        if letter not in whole:
            continue
        if len(whole) > 1:
            sizes = [letters.sizes[one] for one in whole]
            tensor = torch.unflatten(tensor.detach(), place, sizes)
        inside = whole.index(letter)
        tensor = tensor.detach().select(place + inside, index)
        rest = whole.replace(letter, "")
        if len(rest) > 1:
            tensor = tensor.flatten(place, place + len(rest) - 1)
        named = (rest,) if rest else ()
        return tensor, (*axes[:place], *named, *axes[place + 1 :])
    return tensor, axes
