"""A model whose forward takes one object, called with the fields of that.

`forward(batch: Batch)` says by its annotation what is to be made: a dataclass, a named tuple, or
any class whose constructor takes what a forward does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import get_type_hints

from torch import nn

from kvtrace.record.driving.entrance import called_by
from kvtrace.record.driving.ways.roles import named_as_ids, parameters_of
from kvtrace.record.whose import of_frameworks


def object_of(model: nn.Module) -> type | None:
    """The class of the one thing that a forward takes; None: it takes others, or ids."""
    needed = [one for one in parameters_of(model.forward) if one.default is one.empty]
    plain = [one for one in needed if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(plain) != 1:
        return None
    try:
        kind = get_type_hints(model.forward).get(plain[0].name)
    except Exception:  # an annotation may name what is not there
        return None
    if not isinstance(kind, type) or kind.__module__ == "builtins" or of_frameworks(kind):
        return None
    named = [one for one in parameters_of(kind) if one.kind is not one.VAR_KEYWORD]
    return kind if any(named_as_ids(one.name) for one in named) else None


def gathered(model: nn.Module, kind: type) -> nn.Module:
    """The model, called with what an object of a class is made of.

    Args:
        model: Its forward takes such an object.
        kind: The class.
    """
    fields = parameters_of(kind)

    def bound(one: nn.Module) -> Callable[..., object]:
        def forward(*args: object, **named: object) -> object:
            by_name = {field.name: value for field, value in zip(fields, args, strict=False)}
            return one(kind(**by_name, **named))

        forward.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
        return forward

    return called_by(model, bound)
