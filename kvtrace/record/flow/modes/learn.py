"""From a call that was followed to its route, where no difference of the next one can go unseen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Size, Tensor, nn

from kvtrace.record.flow.marks.names import CONCATENATE, DIVIDE, MATMUL, MULTIPLY, STORE
from kvtrace.record.flow.modes.route import Done, Route, Rows, Stride, numbers_of, plain
from kvtrace.record.flow.plans.arrange import Sizes
from kvtrace.record.flow.plans.mix import Mix
from kvtrace.record.flow.plans.plan import Plan, growing_letters

LONGEST = 64
"""Functions from q·kᵀ to weights·v; longer ways are followed each time."""


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
    if numbers is None or _depends(done, results) or not all(map(plain, others)):
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
