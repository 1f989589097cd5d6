"""Models that are no modules: functions from ids to logits, and objects that hold modules."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from types import FunctionType

from torch import nn

_COMPUTES = re.compile(r"forward|generate|(\w+_)?(encode|decode|step|prefill)(_\w+)?")
"""Methods by one of which a text is computed."""


def as_module(function: Callable[..., object]) -> nn.Module:
    """A module whose forward is a function, under the function's name and signature."""
    name = getattr(function, "__name__", type(function).__name__)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    try:
        declared = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        declared = [inspect.Parameter("ids", inspect.Parameter.POSITIONAL_OR_KEYWORD)]

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        held: Callable[..., object] = vars(self)["function"]
        return held(*args, **kwargs)

    forward.__signature__ = inspect.Signature([itself, *declared])  # type: ignore[attr-defined]
    made: nn.Module = type(name, (nn.Module,), {"forward": forward})()
    vars(made)["function"] = function
    return made


def around(thing: object) -> nn.Module | None:
    """A module with the methods and modules of an object that is none itself.

    Args:
        thing: Any.

    Returns:
        None where it holds no modules, or no method of it looks as if it computed a text.
    """
    held = {name: one for name, one in vars(thing).items() if isinstance(one, nn.Module)}
    methods = {
        name: _passed_on(name, method)
        for name in dir(type(thing))
        if isinstance(method := inspect.getattr_static(type(thing), name), FunctionType)
        and not name.startswith("__")
    }
    if not held or not any(_COMPUTES.fullmatch(name) for name in methods):
        return None
    made: nn.Module = type(type(thing).__name__, (nn.Module,), methods)()
    vars(made)["held"] = thing
    for name, one in held.items():
        made.add_module(name, one)
    return made


def _passed_on(name: str, method: FunctionType) -> Callable[..., object]:
    """A method that calls the one of the object that a module holds."""

    @functools.wraps(method)
    def passed(self: nn.Module, /, *args: object, **kwargs: object) -> object:
        call: Callable[..., object] = getattr(vars(self)["held"], name)
        return call(*args, **kwargs)

    return passed
