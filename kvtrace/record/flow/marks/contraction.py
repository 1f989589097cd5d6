"""A product of two tensors as labelled axes, however it was spelled.

matmul, @, bmm, mm, baddbmm, einsum, tensordot and multiply-then-sum all become letters on two
operands and a result; a letter in both operands and not in the result is contracted.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from torch import Tensor

_POOL = "ZYXWVUTSRQPONMLKJIHGFEDCBA"


class Contraction(Struct, frozen=True):
    """left · right = out, one letter an axis.

    Attributes:
        left, right, out: The tensors.
        left_axes, right_axes, out_axes: Their letters.
        alpha: Factor on the product (baddbmm).
    """

    left: Tensor
    right: Tensor
    out: Tensor
    left_axes: str
    right_axes: str
    out_axes: str
    alpha: float = 1.0

    @property
    def contracted(self) -> str:
        """Letters summed over."""
        return "".join(
            letter
            for letter in self.left_axes
            if letter in self.right_axes and letter not in self.out_axes
        )

    def sizes(self) -> dict[str, int]:
        """Size of each letter; a broadcast axis counts with its larger size."""
        found: dict[str, int] = {}
        for tensor, axes in ((self.left, self.left_axes), (self.right, self.right_axes)):
            for letter, size in zip(axes, tensor.shape, strict=True):
                found[letter] = max(size, found.get(letter, 1))
        for letter, size in zip(self.out_axes, self.out.shape, strict=True):
            found.setdefault(letter, size)  # an axis that a sum has kept, of size 1
        return found


def of_matmul(left: Tensor, right: Tensor, out: Tensor, alpha: float = 1.0) -> Contraction:
    """Letters of `left @ right`; a vector has the contracted letter alone."""
    leading = max(left.dim(), right.dim(), 2) - 2
    batch = _POOL[:leading]
    left_axes = "k" if left.dim() == 1 else batch[leading - (left.dim() - 2) :] + "mk"
    right_axes = "k" if right.dim() == 1 else batch[leading - (right.dim() - 2) :] + "kn"
    row = "" if left.dim() == 1 else "m"
    column = "" if right.dim() == 1 else "n"
    return Contraction(left, right, out, left_axes, right_axes, batch + row + column, alpha)


def of_linear(left: Tensor, right: Tensor, out: Tensor) -> Contraction:
    """Letters of `F.linear(left, right)`: the features of both are contracted."""
    rows = _POOL[: left.dim() - 1]
    return Contraction(left, right, out, rows + "k", "nk", rows + "n")


def of_tensordot(left: Tensor, right: Tensor, out: Tensor, axes: object) -> Contraction | None:
    """Letters of a tensordot; `axes` as torch takes it: a number or two lists."""
    if isinstance(axes, int):
        places = list(range(left.dim() - axes, left.dim())), list(range(axes))
    elif isinstance(axes, list | tuple) and all(isinstance(side, list | tuple) for side in axes):
        places = [p % left.dim() for p in axes[0]], [p % right.dim() for p in axes[1]]
    else:
        return None
    left_axes = list(_POOL[: left.dim()])
    right_axes = list(_POOL[left.dim() : left.dim() + right.dim()])
    for one, other in zip(*places, strict=True):
        right_axes[other] = left_axes[one]
    result = "".join(x for n, x in enumerate(left_axes) if n not in places[0])
    result += "".join(x for n, x in enumerate(right_axes) if n not in places[1])
    return Contraction(left, right, out, "".join(left_axes), "".join(right_axes), result)


class Unfinished(Struct, frozen=True):
    """A product whose result is still to come: after a sum, or a division.

    Holds no result, so that a mark on a tensor never keeps that tensor alive.

    Attributes:
        left, right: The operands.
        left_axes, right_axes, out_axes: Letters, those of what is there so far included.
    """

    left: Tensor
    right: Tensor
    left_axes: str
    right_axes: str
    out_axes: str

    def summed(self, out: Tensor, axes: Sequence[int], keep: bool) -> Contraction:
        """After a sum over some axes."""
        gone = {self.out_axes[place] for place in axes}
        spare = iter(x for x in _POOL if x not in self.out_axes)
        kept = [next(spare) if x in gone else x for x in self.out_axes if keep or x not in gone]
        return Contraction(
            self.left, self.right, out, self.left_axes, self.right_axes, "".join(kept)
        )

    def finished(self, out: Tensor) -> Contraction:
        """With the result, its axes unchanged."""
        axes = (self.left_axes, self.right_axes, self.out_axes)
        return Contraction(self.left, self.right, out, *axes)


def of_multiply(left: Tensor, right: Tensor, axes: int) -> Unfinished:
    """Letters of `left * right`, which has that many axes: nothing is contracted yet."""
    letters = _POOL[:axes]
    return Unfinished(
        left, right, letters[axes - left.dim() :], letters[axes - right.dim() :], letters
    )


def of_einsum(equation: str, left: Tensor, right: Tensor, out: Tensor) -> Contraction | None:
    """Letters of an einsum of two operands; None for diagonals."""
    operands = left, right
    spelled = equation.replace(" ", "")
    inputs, _, result = spelled.partition("->")
    terms = inputs.split(",")
    if "->" not in spelled:
        result = _implicit(terms)
    terms, result = _without_ellipsis(terms, result, operands)
    fits = all(len(term) == x.dim() for term, x in zip(terms, operands, strict=True))
    if not fits or any(len(set(term)) != len(term) for term in terms) or len(result) != out.dim():
        return None
    return Contraction(left, right, out, terms[0], terms[1], result)


def _implicit(terms: Sequence[str]) -> str:
    """The result of an einsum without an arrow: letters that occur once, sorted."""
    letters = "".join(terms).replace(".", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return ("..." if "..." in "".join(terms) else "") + "".join(once)


def _without_ellipsis(
    terms: list[str], result: str, operands: Sequence[Tensor]
) -> tuple[list[str], str]:
    """Spell `...` out with letters the equation does not use."""
    if "..." not in "".join(terms):
        return terms, result
    free = [letter for letter in _POOL if letter not in "".join(terms) + result]
    hidden = [
        x.dim() - len(term.replace("...", "")) if "..." in term else 0
        for term, x in zip(terms, operands, strict=True)
    ]
    names = "".join(free[: max(hidden)])
    spelled = [
        term.replace("...", names[len(names) - n :]) for term, n in zip(terms, hidden, strict=True)
    ]
    return spelled, result.replace("...", names)
