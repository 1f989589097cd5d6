"""What attention is made of: products begin or end a call, fused calls are told as they are.

Each function is run here as it was called, and read afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.flow.marks.contraction import Contraction, Unfinished, of_linear, of_multiply
from kvtrace.record.flow.marks.families import Families
from kvtrace.record.flow.marks.follow import (
    Args,
    Function,
    Kwargs,
    argument,
    followed,
    multiplied,
    sum_axes,
    unsummed,
)
from kvtrace.record.flow.marks.mark import Mark, Marks, Stage, start
from kvtrace.record.flow.marks.names import DIVIDE, MULTIPLY
from kvtrace.record.flow.marks.operands import READERS
from kvtrace.record.flow.marks.tainted import Tainted
from kvtrace.record.flow.marks.terms import term
from kvtrace.record.flow.marks.weights import SIGMOIDAL, divided_before, opaque, summed_over
from kvtrace.record.flow.modes.listener import Listener
from kvtrace.record.flow.modes.places import place
from kvtrace.record.flow.plans.mix import Mix

PENDING = 16

Handler = Callable[[Function, Args, Kwargs], Any]


class Products:
    """Reads the functions that begin or end an attention call.

    Attributes:
        marks: Of the tensors that are followed.
        families: Of products that may be scores.
        tainted: Tensors made of parameters alone.
        last_parameter: That something was multiplied with last.
        ended: What ended the call that was read last, if the last product did.
        scored: Where scores that begin now were computed, if that was before; None: it is now.
    """

    def __init__(self, listener: Listener, is_parameter: Callable[[Tensor], bool]) -> None:
        """Nothing is followed yet.

        Args:
            listener: Is told of calls.
            is_parameter: Whether a tensor lies in the memory of a parameter.
        """
        self.marks = Marks()
        self.families = Families()
        self.tainted = Tainted()
        self.last_parameter: Tensor | None = None
        self.ended: Mix | None = None
        self.scored: str | None = None
        self._listener = listener
        self._is_owned = is_parameter
        self._pending: list[tuple[tuple[int, ...], Mark]] = []

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What runs a function of this name in its place, and reads it."""
        return {
            **dict.fromkeys(READERS, self._multiplies),
            **dict.fromkeys(MULTIPLY, self._multiply),
            **dict.fromkeys(DIVIDE, self._divide),
            "sum": self._sum,
            "linear": self._linear,
            "scaled_dot_product_attention": self._sdpa,
            "flex_attention": self._flex,
            "_native_multi_head_attention": self._unfusable,
            "_transformer_encoder_layer_fwd": self._unfusable,
        }

    def forget(self) -> None:
        """Drop all marks: a forward is over."""
        self.marks.clear()
        self.families.forget()
        self._pending.clear()
        self.last_parameter = None

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, a view of one, or made of parameters alone."""
        return type(tensor) is nn.Parameter or self.tainted.has(tensor) or self._is_owned(tensor)

    def _is_operand(self, tensor: Tensor) -> bool:
        """Whether an operand of attention is one; one that only its history tells is noted."""
        if not self.is_parameter(tensor):
            return False
        if self.tainted.has(tensor) and not self._is_owned(tensor):
            self.families.by_taint = True
        return True

    def _multiplies(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        out = func(*args, **kwargs)
        name = func.__name__
        found = READERS[name](name, args, kwargs, out)
        if found is not None and isinstance(out, Tensor):
            left, right, read, added = found
            self._product(left, right, read, added=added)
        return out

    def _multiply(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        left, right = args[0], argument(args, kwargs, 1, "other")
        if not isinstance(right, Tensor) or not isinstance(left, Tensor):
            return self._plain(func, args, kwargs)
        first, second = self.marks.get(left), self.marks.get(right)
        weights = first or second
        if weights is not None and (weights.stage is not Stage.WEIGHTS or (first and second)):
            return followed(self.marks, func, args, kwargs)
        out = func(*args, **kwargs)
        of = left if first else right
        if weights is not None and out.shape == of.shape:
            changed = (*weights.changed, func.__name__)
            self.marks.set(out, replace(weights, changed=changed, base=term(weights, of)))
        elif multiplied(left, right, out) and not self._parameter_of(
            self.is_parameter, left, right
        ):
            product = of_multiply(left, right, out.dim())
            self.marks.set(out, unsummed(weights, product))
        return out

    def _sum(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        out = func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input")
        mark = self.marks.get(x)
        if mark is None or mark.mixed is None or not isinstance(x, Tensor):
            return out
        axes = sum_axes(x, args, kwargs)
        if axes is None:
            return out
        keep = bool(argument(args, kwargs, 2, "keepdim", False))
        product = mark.mixed.summed(out, axes, keep)
        if mark.stage is Stage.MIXED:
            left = self.marks.get(product.left) is not None
            self._mixed(Mix(mark, product, left, place()[0]))
        elif product.contracted:
            self._begin(product, heard=False)
        return out

    def _divide(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """Division by the sum of the exponentials may come after the values."""
        x = args[0] if args else None
        mark = self.marks.get(x)
        if mark is None or mark.stage is not Stage.UNDIVIDED or mark.mixed is None:
            return self._plain(func, args, kwargs)
        out = func(*args, **kwargs)
        product = mark.mixed.finished(out)
        weights_left = self.marks.get(product.left) is not None
        if isinstance(x, Tensor) and isinstance(out, Tensor) and out.shape == x.shape:
            finished = replace(mark, stage=Stage.WEIGHTS, changed=("divided",))
            self._mixed(Mix(finished, product, weights_left, place()[0]))
        return out

    def _linear(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        weight = argument(args, kwargs, 1, "weight")
        out = func(*args, **kwargs)
        if type(weight) is nn.Parameter or self.is_parameter(weight):
            self.last_parameter = weight
        elif weight.dim() == 2 and argument(args, kwargs, 2, "bias") is None:
            left = argument(args, kwargs, 0, "input")
            self._product(left, weight, lambda: of_linear(left, weight, out))
        return out

    def _plain(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        if self.marks:
            return followed(self.marks, func, args, kwargs)
        return func(*args, **kwargs)

    def _parameter_of(self, test: Callable[[Tensor], bool], *sides: Tensor) -> bool:
        for side in sides:
            if test(side):
                self.last_parameter = side
                return True
        return False

    def _product(
        self,
        left: Any,
        right: Any,
        read: Callable[[], Contraction | None],
        *,
        added: bool = False,
    ) -> None:
        """A product of two tensors: the end of an attention call, the start of one, or neither."""
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return
        if self._parameter_of(self._is_operand, left, right):
            return
        product = read()
        if product is None or not product.out.dtype.is_floating_point or not product.contracted:
            return
        self.families.heard((left, right))
        first, second = self._weights(left), self._weights(right)
        if (first is None) != (second is None):
            mark = first or second
            assert mark is not None
            if mark.stage is Stage.EXPONENTIALS:
                mark = divided_before(mark, left if first is not None else right)
            if mark.stage is Stage.EXPONENTIALS:
                axes = (product.left_axes, product.right_axes, product.out_axes)
                open_ended = Unfinished(left, right, *axes)
                left_too = replace(mark, stage=Stage.UNDIVIDED, mixed=open_ended)
                self.marks.set(product.out, left_too)
                return
            if self._mixed(Mix(mark, product, first is not None, place()[0])):
                self._pending.clear()
                return
        self._begin(product, added=added)

    def _weights(self, tensor: Tensor) -> Mark | None:
        """The mark of weights, those from a scripted softmax included."""
        mark = self.marks.get(tensor)
        if mark is not None:
            return mark if mark.stage in (Stage.WEIGHTS, Stage.EXPONENTIALS) else None
        for shape, scores in reversed(self._pending):
            if shape == tuple(tensor.shape) and tensor.dtype.is_floating_point:
                found = opaque(scores, tensor)
                if found is not None:
                    return found
        return None

    def _mixed(self, mix: Mix) -> bool:
        if mix.mark.normaliser == SIGMOIDAL:
            mark = summed_over(mix.mark, mix.weights[1], mix.product.contracted)
            mix = replace(mix, mark=mark)
        ended = self._listener.mixed(mix)
        self.ended = mix if ended else None
        if ended:
            self.families.end(mix.mark)
        return ended

    def _begin(self, product: Contraction, *, added: bool = False, heard: bool = True) -> None:
        mark = start(product, place()[0] if self.scored is None else self.scored)
        self.families.begin(mark, heard=heard)
        if added:
            mark = replace(mark, added=True)
        self.marks.set(product.out, mark)
        self._pending = [*self._pending[1 - PENDING :], (tuple(product.out.shape), mark)]

    def _sdpa(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        out = func(*args, **kwargs)
        sides = (argument(args, kwargs, 0, "query"), argument(args, kwargs, 1, "key"))
        # a learned query over something is pooling, learned keys are a codebook
        if not any(isinstance(x, Tensor) and self._is_operand(x) for x in sides):
            self.families.heard(sides)
            self._listener.fused("sdpa", args, kwargs, out)
        return out

    def _flex(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        return self._fused("flex", func, args, kwargs)

    def _fused(self, kind: str, func: Function, args: Args, kwargs: Kwargs) -> Any:
        self.families.odd = True
        out = func(*args, **kwargs)
        self._listener.fused(kind, args, kwargs, out)
        return out

    def _unfusable(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        return self._fused("unfusable", func, args, kwargs)
