"""Methods that are given rows instead of ids, and called from outside: each such call is a step.

A backbone inside a larger model, of speech for one, has a `forward_step(inputs_embeds, position)`
that somebody's loop calls. Such methods are known by their names and by what they are given.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from kvtrace.record.capture.running import passes
from kvtrace.record.capture.tokens.inputs import tokens_in
from kvtrace.record.capture.watch import Watch
from kvtrace.record.driving.entrance import may_step
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.flow import FlowWatch

Method = Callable[..., Any]


_STEP = re.compile(r"^(?!train|valid|test|eval|predict|optim).*step", re.IGNORECASE)
"""Names that say that it is one."""

_PLACED = re.compile(r"pos(?!t)|cache|past|offset|start_pos|^states?$|^step(_?id\w*)?$")
"""Names of what only a step is given."""


class _Here(threading.local):
    flow: FlowWatch | None = None


_HERE = _Here()
"""What follows the step that runs in this thread."""


def stepping_methods(kind: type) -> Iterator[str]:
    """Names of a class's own methods that may take a step, besides forward.

    One that is given no place in the text, and no cache, may as well run a whole loop.
    """
    for name, one in vars(kind).items():
        if name == "forward" or not isinstance(one, FunctionType) or not may_step(name):
            continue
        takes = inspect.signature(one).parameters
        if _STEP.search(name) or any(map(_PLACED.search, takes)):
            yield name


def rows_given(
    method: Method, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, object] | None:
    """What a method is given, its rows first; None: it is given ids, or what may be no rows.

    Args:
        method: A function of the module's class.
        module: Whose method is called.
        args: By place.
        kwargs: By name.

    Returns:
        By the names of the method, rows as [sequences, new, width], where it has a whole model's
        layers within and its first argument are rows of one token, or of several, each.
    """
    try:
        given = inspect.signature(method).bind(module, *args, **kwargs).arguments
    except TypeError:
        return None  # the call fails by itself
    named = dict(list(given.items())[1:])
    first = next(iter(named), "")
    rows = named.get(first)
    fits = isinstance(rows, Tensor) and rows.is_floating_point() and rows.dim() in (2, 3)
    if not fits or tokens_in(named) is not None or not any(module.children()):
        return None
    assert isinstance(rows, Tensor)
    return {**named, first: rows if rows.dim() == 3 else rows[:, None]}


def run_as_step(watch: Watch, method: Method, given: Mapping[str, object], call: Any) -> Any:
    """Run a method of the model that is watched: a step, if it attends.

    Args:
        watch: Of the model.
        method: The function.
        given: See `rows_given`.
        call: Module, arguments by place, and by name.

    Returns:
        The method's result.
    """
    module, args, kwargs = call
    takes = {one.name for one in signature_of(module).parameters}
    known = next(iter(given))
    # what else it is given tells of this one step: the forward has its own ways to know
    arguments = {name: one for name, one in given.items() if name == known or name in takes}
    one = watch.begin_step(arguments)
    if one is None or one.nested:
        return method(module, *args, **kwargs)
    attended = False
    try:
        _HERE.flow = watch.flow
        if watch.flow is not None:
            watch.flow.of_parts = False
        result = run_within(method, module, args, kwargs)
        attended = bool(one.calls)
        left = [f"`{name}`" for name in given if name not in arguments] if attended else []
        if left:
            kind = type(module).__name__
            watch.says[
                f"{kind}.{method.__name__} is given {' and '.join(left)}, which {kind}.forward "
                "does not take: steps do not tell of it, nor do other lanes know it"
            ] = None
        return result
    finally:
        _HERE.flow = None
        if one in passes():
            watch.end_step(arguments, "model" if attended else "")


def run_within(method: Method, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Any:
    """Run a method that may be a part of the step under way: then it is watched as a forward."""
    flow = _HERE.flow
    if flow is None:
        return method(module, *args, **kwargs)
    return flow.as_forward(method, module, args, kwargs)
