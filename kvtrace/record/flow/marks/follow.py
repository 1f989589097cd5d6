"""Marks carried through every torch function, from q·kᵀ to weights·v.

Knows names, shapes and marks. Whether a product of weights and values is attention, and what to
do then, is the listener's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.explain import HIDDEN_BELOW
from kvtrace.record.flow.marks.axes import Letters
from kvtrace.record.flow.marks.contraction import Unfinished
from kvtrace.record.flow.marks.mark import Mark, Marks, Stage, summed
from kvtrace.record.flow.marks.names import (
    ADD,
    CONCATENATE,
    COPIES,
    DIVIDE,
    EXP,
    MULTIPLY,
    NOT_FOLLOWED,
    RANDOM,
    REVERSED_SUBTRACT,
    SIGMOID,
    SOFTMAX,
    STORE,
    SUBTRACT,
    TANH,
)
from kvtrace.record.flow.marks.terms import added_up, part_of, term
from kvtrace.record.flow.marks.views import VIEWS, attribute, elementwise
from kvtrace.record.flow.marks.weights import DIVIDED, SIGMOIDAL, exponentials, gates, normalised


class Function(Protocol):
    """A torch function as a mode is given it."""

    __name__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""


UNSUMMED = (Stage.PRODUCT, Stage.MIXED, Stage.UNDIVIDED)

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


def argument(args: Args, kwargs: Kwargs, place: int, name: str, default: Any = None) -> Any:
    """An argument by place or by name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def marked(marks: Marks, args: Args, kwargs: Kwargs) -> list[tuple[Tensor, Mark]]:
    """Marked tensors among the arguments, one level of lists included."""
    found: list[tuple[Tensor, Mark]] = []
    held = marks.held
    for value in (*args, *kwargs.values()) if kwargs else args:
        one = held.get(id(value))
        if one is not None:
            tensor = one[0]()
            if tensor is not None and tensor is value and one[1].stage not in UNSUMMED:
                found.append((tensor, one[1]))
        elif type(value) in (list, tuple):
            found += marked(marks, value, {})
    return found


def after(
    name: str, held: list[tuple[Tensor, Mark]], args: Args, kwargs: Kwargs, out: Tensor
) -> Mark | None:
    """The mark of a function's result; None when it carries neither scores nor weights."""
    x, mark = held[0]
    if name in VIEWS and args and args[0] is x:
        axes = None
        if mark.axes is not None:
            axes = VIEWS[name](mark.axes, mark.letters, x, out, (args[1:], kwargs))
            if axes is None and mark.stage is Stage.WEIGHTS:
                return part_of(mark, x, out) or replace(mark, axes=None)
        return replace(mark, axes=axes)
    if name in COPIES:
        return mark
    if name in CONCATENATE:
        return _concatenated(held, args, kwargs, out)
    if len(held) > 1 and held[1][1] is not mark:
        return _of_two(name, held, args, out)
    return _of_one(name, x, mark, args, kwargs, out)


def _of_one(
    name: str, x: Tensor, mark: Mark, args: Args, kwargs: Kwargs, out: Tensor
) -> Mark | None:
    axes = None if mark.axes is None else elementwise(mark.axes, mark.letters, x, out)
    if axes is None and out.dim() < x.dim():
        return None
    moved = mark if axes == mark.axes else replace(mark, axes=axes)
    if mark.stage is Stage.SCORES:
        return _scores(name, moved, x, args, kwargs)
    if mark.stage is Stage.EXPONENTIALS and name in DIVIDE:
        return replace(moved, stage=Stage.WEIGHTS, normaliser=DIVIDED)
    if name in RANDOM and moved.weights is None and out is not x:
        moved = replace(moved, weights=x)
    elif name not in RANDOM and mark.stage is Stage.WEIGHTS and out is not x:
        moved = replace(moved, base=term(mark, x))
    return replace(moved, changed=(*moved.changed, name))


def _scores(name: str, mark: Mark, x: Tensor, args: Args, kwargs: Kwargs) -> Mark:
    """Scores after one more operation."""
    if name in MULTIPLY or name in DIVIDE:
        other = argument(args, kwargs, 1, "other")
        number = _number(args[0] if other is x else other)
        if number is None:
            return replace(mark, changed=(*mark.changed, name))
        return mark.scaled(1.0 / number if name in DIVIDE else number)
    return _not_scaled(name, mark, x, args, kwargs)


def _not_scaled(name: str, mark: Mark, x: Tensor, args: Args, kwargs: Kwargs) -> Mark:
    """Scores after an operation that is no multiplication."""
    if name in TANH:
        return mark.capped()
    if name in ("neg", "negative"):
        return mark.scaled(-1.0)
    if name in REVERSED_SUBTRACT or (name in SUBTRACT and args[0] is not x):
        return replace(mark.scaled(-1.0), added=True)
    if name in ("masked_fill", "masked_fill_"):
        value = _number(argument(args, kwargs, 2, "value"))
        if value is not None and value < HIDDEN_BELOW:
            return mark
    return replace(mark, added=True)


def _number(value: object) -> float | None:
    """A factor: a number, or a tensor that holds one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) or None
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach()) or None
    return None


def _of_two(name: str, held: list[tuple[Tensor, Mark]], args: Args, out: Tensor) -> Mark | None:
    """Two marked tensors at once: a sum of scores, or exponentials over their own sum."""
    (x, first), (y, second) = held[:2]
    if first.stage is Stage.SCORES and second.stage is Stage.SCORES:
        if out.shape != x.shape and out.shape == y.shape:
            (x, first), (y, second) = (y, second), (x, first)
        if name in SUBTRACT:
            second = second.scaled(-1.0)
        elif name not in ADD:
            return None
        return summed(first, second) if out.shape == x.shape else None
    if first.stage is Stage.WEIGHTS is second.stage and name in (*ADD, *SUBTRACT):
        return added_up((x, first), (y, second))
    if name in MULTIPLY and SIGMOIDAL in (first.normaliser, second.normaliser):
        # gates on weights: those that are no gates count
        kept, of = (second, y) if first.normaliser == SIGMOIDAL else (first, x)
        return replace(kept, changed=(*kept.changed, name)) if out.shape == of.shape else None
    if first.letters is second.letters and out.shape == x.shape:
        # where(mask, weights, scores) and the like stay with the later stage
        late = second if second.stage is Stage.WEIGHTS else first
        return replace(late, changed=(*late.changed, name))
    return None


def _concatenated(
    held: list[tuple[Tensor, Mark]], args: Args, kwargs: Kwargs, out: Tensor
) -> Mark | None:
    """A sink column beside the scores: the axis gets a new, longer letter."""
    parts = argument(args, kwargs, 0, "tensors")
    x, mark = held[0]
    if len(held) != 1 or mark.stage is not Stage.SCORES or mark.axes is None:
        return None
    if out.dim() != x.dim():
        return None
    place = argument(args, kwargs, 1, "dim", 0) % x.dim()
    at = next(n for n, part in enumerate(parts) if part is x)
    before = sum(part.shape[place] for part in parts[:at])
    axis = mark.axes[place]
    if len(axis) != 1:
        return replace(mark, axes=None)
    longer = mark.letters.lengthened(axis, before, out.shape[place])
    return replace(mark, axes=(*mark.axes[:place], longer, *mark.axes[place + 1 :]))


def multiplied(left: Tensor, right: Tensor, out: object) -> bool:
    """Whether an elementwise product may be the first half of multiply-and-sum."""
    return (
        isinstance(out, Tensor)
        and (left.shape != right.shape or left.dim() > 3)
        and left.dim() >= 3
        and right.dim() >= 2
        and out.dtype.is_floating_point
        and left.dtype.is_floating_point
        and right.dtype.is_floating_point
    )


def sum_axes(x: Tensor, args: Args, kwargs: Kwargs) -> list[int] | None:
    """Axes of `x.sum(…)`, counted from the front; None for all."""
    axes = argument(args, kwargs, 1, "dim", kwargs.get("axis"))
    if axes is None:
        return None
    return [place % x.dim() for place in ([axes] if isinstance(axes, int) else axes)]


def stored(marks: Marks, name: str, args: Args, held: list[tuple[Tensor, Mark]]) -> bool:
    """Whether a function wrote into its first argument; that one's mark is kept up to date."""
    if name not in STORE:
        return False
    target = args[0]
    mark = marks.get(target)
    if mark is not None and mark.stage is Stage.SCORES:
        marks.set(target, replace(mark, added=True))
    elif mark is None and name == "copy_" and target.shape == held[0][0].shape:
        marks.set(target, held[0][1])
    return True


def followed(marks: Marks, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Call a function with marked arguments, and mark what it returns."""
    name = function.__name__
    held = marked(marks, args, kwargs)
    if not held or (name in NOT_FOLLOWED and not _of_larger(name, args)):
        return function(*args, **kwargs)
    x, mark = held[0]
    if name == "__get__":
        out = function(*args, **kwargs)
        axes = None
        if isinstance(out, Tensor) and mark.axes is not None:
            getter = getattr(function, "__self__", None)
            axes = attribute(getattr(getter, "__name__", ""), mark.axes, x)
        if axes is not None:
            marks.set(out, replace(mark, axes=axes))
        return out
    if name in (*EXP, *SIGMOID) and len(held) == 1:
        logits = x.detach().clone() if name.endswith("_") else x
        out = function(*args, **kwargs)
        new = exponentials(mark, logits) if name in EXP else gates(mark, logits)
    elif name in SOFTMAX:
        out = function(*args, **kwargs)
        new = normalised(mark, x, softmax_axis(x, args, kwargs), name)
    else:
        out = function(*args, **kwargs)
        if stored(marks, name, args, held):
            return out
        if isinstance(out, tuple | list):
            _mark_pieces(marks, name, x, mark, out)
            return out
        fits = isinstance(out, Tensor) and out.dtype.is_floating_point
        new = after(name, held, args, kwargs, out) if fits else None
    if new is not None:
        marks.set(out, new)
    return out


def _of_larger(name: str, args: Args) -> bool:
    """torch.max(scores, smallest): the larger of two tensors, not a reduction."""
    return name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor)


def softmax_axis(x: Tensor, args: Args, kwargs: Kwargs) -> int:
    """Axis of a softmax; F.softmax without one takes 1, or 0 for one, two or… axes."""
    axis = argument(args, kwargs, 1, "dim")
    if axis is None:
        return 0 if x.dim() in (0, 1, 3) else 1
    return int(axis)


def _mark_pieces(marks: Marks, name: str, x: Tensor, mark: Mark, out: Sequence[object]) -> None:
    """chunk, split and the like: a piece as long as the whole keeps its axes."""
    for piece in out:
        if isinstance(piece, Tensor) and piece.dtype.is_floating_point:
            axes = mark.axes if piece.shape == x.shape else None
            if mark.axes is not None and axes is None and name != "unbind":
                differs = [n for n in range(x.dim()) if piece.shape[n] != x.shape[n]]
                if len(differs) == 1:
                    at = differs[0]
                    first = int(piece.storage_offset() - x.storage_offset()) // max(1, x.stride(at))
                    cut = mark.letters.cut(mark.axes[at], first, piece.shape[at])
                    axes = None if cut is None else (*mark.axes[:at], cut, *mark.axes[at + 1 :])
            part = replace(mark, axes=axes) if axes is not None else part_of(mark, x, piece)
            if part is not None:
                marks.set(piece, part)


def unsummed(mark: Mark | None, product: Unfinished) -> Mark:
    """The mark of an elementwise product: of two operands, or of weights and values."""
    if mark is None:
        return Mark(Stage.PRODUCT, Letters(), None, mixed=product)
    return replace(mark, stage=Stage.MIXED, mixed=product)
