"""The way from q·kᵀ to weights·v through torch functions, as one call of a module went it.

The next call of the same code mostly goes the same way: the same functions in the same order,
handed the same numbers, each the results of the same ones before it. Then everything that was
found out by following holds again, and only the rows and the mask must be looked at. Whatever
could make a difference is compared; ways on which something can differ unseen are no routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from msgspec import Struct
from torch import Size, Tensor, nn

from kvtrace.record.flow.marks.names import CONCATENATE, DIVIDE, MATMUL, MULTIPLY, STORE
from kvtrace.record.flow.plans.arrange import Sizes
from kvtrace.record.flow.plans.plan import Mix, Plan, growing_letters

LONGEST = 64
"""Functions from q·kᵀ to weights·v; longer ways are followed each time."""

Places = tuple[tuple[int, int], ...]
Numbers = tuple[tuple[int, object], ...]

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, type(Ellipsis))


class Done(NamedTuple):
    """A torch function that has run.

    Attributes:
        function: It.
        args, named: What it was given.
        out: What it gave back.
    """

    function: Any
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """Its name."""
        return str(getattr(self.function, "__name__", ""))


class Told:
    """Stands for a function that has run: called again, it only tells what it gave back."""

    __slots__ = ("__name__", "out")

    def __init__(self, done: Done) -> None:
        self.__name__ = done.name
        self.out = done.out

    def __call__(self, *_: Any, **__: Any) -> Any:
        """What it gave back."""
        return self.out


class Stride(Struct, frozen=True):
    """One function on the way.

    Attributes:
        function: It.
        args: How many arguments it is given.
        links: Place of an argument and which result on the way it is.
        numbers: Place of an argument and what it is, where it is no tensor.
        named: All named arguments.
        axes: Of its result, where that is on the way too; else None.
    """

    function: Any
    args: int
    links: Places = ()
    numbers: Numbers = ()
    named: Mapping[str, object] | None = None
    axes: int | None = None

    def fits(self, function: Any, args: Sequence[Any], named: Any, results: list[Tensor]) -> bool:
        """Whether a call is this one."""
        mine = self.function
        if (function is not mine and function != mine) or len(args) != self.args:
            return False
        for place, result in self.links:
            if args[place] is not results[result]:
                return False
        for place, number in self.numbers:
            given = args[place]
            if type(given) is not type(number) or given != number:
                return False
        return self.named is None or equal(named, self.named)


def equal(named: Mapping[str, object], mine: Mapping[str, object]) -> bool:
    """Whether named arguments are the same."""
    if len(named) != len(mine):
        return False
    for name, value in mine.items():
        given = named.get(name, named)
        if type(given) is not type(value) or given != value:
            return False
    return True


class Rows(Struct, frozen=True):
    """A tensor of rows among the arguments of a function.

    Attributes:
        place: Of it.
        shape: Of it.
        growing: The axis whose size may be another one each time; None: none may.
    """

    place: int
    shape: Size
    growing: int | None = None

    def fits(self, tensor: object) -> bool:
        """Whether a tensor is like that."""
        if type(tensor) is not Tensor or tensor.dim() != len(self.shape):
            return False
        at = self.growing
        if at is None:
            return tensor.shape == self.shape
        now, mine = tensor.shape, self.shape
        return now[at] > 1 and now[:at] == mine[:at] and now[at + 1 :] == mine[at + 1 :]


def _grown(tensor: Tensor, like: Rows) -> int:
    """Size of the axis that may grow."""
    return 0 if like.growing is None else tensor.shape[like.growing]


class Route(Struct, frozen=True):
    """What a call must be like to be read as the one before.

    Attributes:
        strides: All functions, from q·kᵀ to weights·v.
        queries, keys: Among the arguments of the first.
        values: Among those of the last.
        logits: Which result on the way is what the softmax was given.
        plan: How the tensors lie.
        scale, softcap: Of the call.
        sizes: Of the step.
        place: "file.py:line" of weights·v.
        added: Something was added to the scores, which only hid rows.
    """

    strides: tuple[Stride, ...]
    queries: Rows
    keys: Rows
    values: Rows
    logits: int
    plan: Plan
    scale: float
    softcap: float | None
    sizes: Sizes
    place: str
    added: bool

    def begins(self, function: Any, args: Sequence[Any], named: Any, sizes: Sizes) -> bool:
        """Whether a product of queries and keys may be its beginning."""
        return (
            self.strides[0].fits(function, args, named, [])
            and self.queries.fits(args[self.queries.place])
            and self.keys.fits(args[self.keys.place])
            and sizes == self.sizes
        )

    def ends(self, walk: Walk, args: Sequence[Any]) -> bool:
        """Whether a product of weights and values may be its end."""
        values, keys = args[self.values.place], walk.done[0].args[self.keys.place]
        if not self.values.fits(values):
            return False
        return _grown(values, self.values) == _grown(keys, self.keys)


@dataclass(slots=True)
class Walk:
    """A call that has gone a route so far.

    Attributes:
        route: It.
        site: Whose.
        frame: Its forward.
        done: Functions that have run.
        results: Those of their results that are on the way.
    """

    route: Route
    site: tuple[str, int]
    frame: object
    done: list[Done]
    results: list[Tensor]


def learn(
    log: Sequence[Done], mix: Mix, plan: Plan, sizes: Sizes, kept: frozenset[str]
) -> Route | None:
    """The route of a call that was followed; None where a difference could go unseen.

    Args:
        log: All functions from q·kᵀ to weights·v.
        mix: The last of them, as it was followed.
        plan: How its tensors lie.
        sizes: Of the step.
        kept: Names of functions that must be followed each time.
    """
    mark, last = mix.mark, log[-1]
    alone = len(mark.products) == len(plan.parts) == 1 and not mark.terms
    if not plan.plain or not plan.proven or not alone:
        return None
    if len(log) > LONGEST or mix.product.out is not last.out or mark.logits is None:
        return None
    _, left, _, _ = plan.parts[0]
    product, growing = mark.products[0], growing_letters(mark)
    pairs = [(product.left, product.left_axes), (product.right, product.right_axes)]
    (queries, _), (keys, axes) = pairs if left else pairs[::-1]
    contracted = mix.product.contracted
    if not growing or axes.count(growing[0]) != 1 or len(contracted) != 1:
        return None
    single = keys.shape[axes.index(growing[0])] == 1  # where a second row would stand is not known
    values, names = mix.values
    places = [_place(log[0], queries), _place(log[0], keys), _place(last, values)]
    found = _strides(log, kept)
    if single or found is None or None in places:
        return None
    strides, results = found
    logits = next((n for n, one in enumerate(results) if one is mark.logits), None)
    if logits is None or results[strides[-1].links[0][1]] is not mix.weights[0]:
        return None
    q, k, v = (place for place in places if place is not None)
    return Route(
        strides,
        Rows(q, queries.shape),
        Rows(k, keys.shape, axes.index(growing[0])),
        Rows(v, values.shape, names.index(contracted)),
        logits,
        plan,
        mark.scale,
        mark.cap,
        sizes,
        mix.place,
        mark.added,
    )


def _place(done: Done, tensor: Tensor) -> int | None:
    """Where a function was given a tensor."""
    found = [n for n, one in enumerate(done.args) if one is tensor]
    return found[0] if len(found) == 1 else None


def _strides(
    log: Sequence[Done], kept: frozenset[str]
) -> tuple[tuple[Stride, ...], list[Tensor]] | None:
    """All functions, and the results that are on the way; None where one could differ unseen."""
    first, last = log[0], log[-1]
    if any(one.named or one.name not in (*MATMUL, "einsum") for one in (first, last)):
        return None
    numbers = numbers_of(first.args, ())
    if numbers is None or not isinstance(first.out, Tensor):
        return None
    results = [first.out]
    strides = [Stride(first.function, len(first.args), (), numbers, {}, first.out.dim())]
    for done in log[1:]:
        one = None if done is not last and done.name in kept else _stride(done, results)
        if one is None:
            return None
        strides.append(one)
        if one.axes is not None:
            results.append(done.out)
    ends = strides[-1].links
    return (tuple(strides), results) if len(ends) == 1 else None


def _stride(done: Done, results: list[Tensor]) -> Stride | None:
    """One function; None where it could make a difference that nobody sees."""
    args, others = done.args, tuple(done.named.values())
    nested = [x for one in (*args, *others) if isinstance(one, list | tuple) for x in one]
    if _writes(done.name) or any(type(one) is nn.Parameter for one in (*args, *others, *nested)):
        return None
    if any(x is result for x in (*nested, *others) for result in results):
        return None
    # a conversion to what a tensor is already gives back the tensor: the first of equals counts
    first = {id(result): number for number, result in reversed(list(enumerate(results)))}
    links = tuple((place, first[id(one)]) for place, one in enumerate(args) if id(one) in first)
    if not links:
        return Stride(done.function, len(args))
    numbers = numbers_of(args, [place for place, _ in links])
    if numbers is None or _depends(done, results) or not all(map(_plain, others)):
        return None
    axes = done.out.dim() if isinstance(done.out, Tensor) else None
    return Stride(done.function, len(args), links, numbers, dict(done.named), axes)


def _writes(name: str) -> bool:
    """Whether a function may write into a tensor it is given."""
    return name in STORE or name.startswith("__i") or (name[-1:] == "_" and name[-2:] != "__")


def _depends(done: Done, results: list[Tensor]) -> bool:
    """Whether what becomes of scores depends on numbers in other tensors, or it makes several."""
    others = [
        one
        for one in done.args
        if isinstance(one, Tensor) and not any(one is result for result in results)
    ]
    if done.name in CONCATENATE or any(one.dim() == 0 for one in others):
        return True
    if others and done.name in (*MULTIPLY, *DIVIDE):
        return True
    return isinstance(done.out, list | tuple) and not isinstance(done.out, Size)


def numbers_of(args: Sequence[Any], links: Sequence[int]) -> Numbers | None:
    """Arguments that are no tensors; None where one can't be compared."""
    found = []
    for place, one in enumerate(args):
        if place in links or isinstance(one, Tensor):
            continue
        if not _plain(one):
            return None
        found.append((place, one))
    return tuple(found)


def _plain(value: object) -> bool:
    """Whether a value holds no tensors, and can be compared."""
    if isinstance(value, slice):
        return all(_plain(one) for one in (value.start, value.stop, value.step))
    if isinstance(value, list | tuple):
        return all(_plain(one) for one in value)
    return isinstance(value, _PLAIN)
