"""Models that are no modules: a function from ids to logits, or an object that is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn


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
