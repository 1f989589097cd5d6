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
from torch import Size, Tensor

from kvtrace.record.flow.plans.arrange import Sizes
from kvtrace.record.flow.plans.plan import Plan

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
        return str(getattr(self.function, "__name__", "")).partition(".")[0]


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
        scored: "file.py:line" of q·kᵀ.
    """

    route: Route
    site: tuple[str, int]
    frame: object
    done: list[Done]
    results: list[Tensor]
    scored: str


def numbers_of(args: Sequence[Any], links: Sequence[int]) -> Numbers | None:
    """Arguments that are no tensors; None where one can't be compared."""
    found = []
    for place, one in enumerate(args):
        if place in links or isinstance(one, Tensor):
            continue
        if not plain(one):
            return None
        found.append((place, one))
    return tuple(found)


def plain(value: object) -> bool:
    """Whether a value holds no tensors, and can be compared."""
    if isinstance(value, slice):
        return all(plain(one) for one in (value.start, value.stop, value.step))
    if isinstance(value, list | tuple):
        return all(plain(one) for one in value)
    return isinstance(value, _PLAIN)
