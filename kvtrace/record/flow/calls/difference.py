"""Attention by the difference of softmaxes: each of them, with the output that it alone would have.

Weights that are several softmaxes added up, each times a number (Ye et al., 2024, "Differential
Transformer"). The model makes one output of all; each softmax is told as a call of its own, whose
output is calculated here from the model's own weights. That the weights add up to what the model
multiplied with its values is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvtrace.record.flow.calls.explain import UnexplainedError
from kvtrace.record.flow.calls.plan import Mix
from kvtrace.record.flow.calls.prove import HALF
from kvtrace.record.flow.marks.axes import Axes, Letters
from kvtrace.record.flow.marks.mark import Mark, Product, Stage, Term

ROWS = 16
"""Query rows by which it is checked that weights add up."""


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
    return Product(left, right, left_axes, right_axes, one.alpha)


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


def mixes(mix: Mix) -> list[Mix]:
    """Each softmax with the values, as if it were alone.

    Raises:
        UnexplainedError: Its weights have another shape than the sum.
    """
    product, out = mix.product, []
    spelled = f"{product.left_axes},{product.right_axes}->{product.out_axes}"
    total, _ = mix.weights
    values, _ = mix.values
    for one in mix.mark.terms:
        if one.weights.shape != total.shape:
            raise UnexplainedError("what is added up has another shape than the sum")
        weights = one.weights.detach().to(values.dtype)
        sides = (weights, values) if mix.weights_left else (values, weights)
        made = torch.einsum(spelled, *sides)
        alone = replace(product, left=sides[0], right=sides[1], out=made)
        out.append(Mix(one.mark, alone, mix.weights_left, mix.place))
    return out


def factors(total: Tensor, parts: Sequence[Tensor]) -> list[list[float]]:
    """The number that each part counts with, per head.

    Args:
        total: Weights as the model multiplied them with its values, [sequences, heads, new, seq].
        parts: What each softmax made, the same.

    Raises:
        UnexplainedError: They do not add up.
    """
    rows = min(ROWS, total.shape[2])
    last = [one.detach()[:, :, -rows:].double() for one in (total, *parts)]
    low = any(one.dtype in HALF for one in (total, *parts))
    found = []
    for head in range(total.shape[1]):
        wanted, *columns = (one[:, head].reshape(-1) for one in last)
        table = torch.stack(columns, dim=1)
        numbers = torch.linalg.lstsq(table, wanted[:, None], driver="gelsd").solution
        error = float((table @ numbers - wanted[:, None]).abs().amax())
        if error > (2e-2 if low else 1e-4):
            raise UnexplainedError(f"its softmaxes do not add up to its weights, by {error:.2g}")
        found.append([float(one) for one in numbers[:, 0]])
    return found


def said(found: Sequence[Sequence[float]]) -> str:
    """What a reader must know of it."""
    ranges = []
    for numbers in zip(*found, strict=True):
        low, high = min(numbers), max(numbers)
        same = high - low < 1e-3
        ranges.append(f"{low:.3g}" if same else f"{low:.3g} to {high:.3g}")
    times = " and ".join(ranges)
    return (
        f"its weights are {len(ranges)} softmaxes added up, times {times}; each is shown as a call "
        "of its own, with the output that it alone would have, and values that they share are "
        "counted for each"
    )
