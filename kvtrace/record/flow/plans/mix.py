"""The product that ends an attention call: weights with something, mostly with values."""

from __future__ import annotations

from msgspec import Struct
from torch import Tensor

from kvtrace.record.flow.marks.contraction import Contraction
from kvtrace.record.flow.marks.mark import Mark


class Mix(Struct, frozen=True):
    """A product of marked weights with something: the end of an attention call.

    Attributes:
        mark: Of the weights.
        product: Weights · values.
        weights_left: Which operand holds the weights.
        place: "file.py:line" of the product.
    """

    mark: Mark
    product: Contraction
    weights_left: bool
    place: str

    @property
    def weights(self) -> tuple[Tensor, str]:
        """The weights, and their letters in the product."""
        mix = self.product
        return (mix.left, mix.left_axes) if self.weights_left else (mix.right, mix.right_axes)

    @property
    def values(self) -> tuple[Tensor, str]:
        """The values, and their letters in the product."""
        mix = self.product
        return (mix.right, mix.right_axes) if self.weights_left else (mix.left, mix.left_axes)

    @property
    def tensors(self) -> list[Tensor]:
        """All that was multiplied, and what came of it."""
        ends = (self.product.left, self.product.right, self.product.out)
        return [*ends, *(one for part in self.mark.products for one in (part.left, part.right))]

    @property
    def contracts_keys(self) -> bool:
        """Whether the product contracts the axis of the softmax."""
        mark, mix = self.mark, self.product
        letters, (_, names) = mark.letters, self.weights
        if mark.axes is None or len(mark.axes) != len(names):
            return False
        key = letters.whole(mark.key)
        if letters.size(key) == 1:
            return len(mix.contracted) == 1 and mix.sizes()[mix.contracted] == 1
        named = dict(zip(names, mark.axes, strict=True))
        contracted = letters.whole("".join(named.get(x, "") for x in mix.contracted))
        return contracted in (key, letters.whole(letters.before(mark.key)))
