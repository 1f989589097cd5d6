"""Another method of a model as its forward, so that whoever watches the model sees the calls.

The entrance is the same model: it shares all that the model has, and only what happens when it is
called differs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import MethodType

from torch import nn

from kvtrace.record.driving.ways.offered import methods
from kvtrace.record.driving.ways.roles import parameters_of, signature_of

_ENTRANCES = re.compile(
    r"(forward|decode|step|infer|inference|predict|run|call|incremental|cached|next)_?"
    r"(\w*_)?(with_)?(kv_?)?(cache|cached|step|one|token|next|incremental|inference|logits|kv)?"
    r"|(\w+_)?(step|forward|decode|infer)"
)


_BEHIND = "behind this entrance"
"""Where the class of an entrance keeps that of its model; no name that a person could give."""

_LOGITS = re.compile(r"(forward|call|run|predict)_\w+|(get_|compute_|lm_)?logits")


def plain_entrances(model: nn.Module) -> Iterator[str]:
    """Methods besides forward that may give logits for ids, where forward gives a loss, say."""
    for name, _ in methods(model):
        if _LOGITS.fullmatch(name.lower()) and signature_of(through(model, name)).ids:
            yield name


def may_step(name: str) -> bool:
    """Whether a method of this name may take a step, as `forward_step` or `decode` do."""
    return not name.startswith("_") and _ENTRANCES.fullmatch(name.lower()) is not None


def entrances(model: nn.Module) -> Iterator[str]:
    """Methods besides forward that may take single tokens with a cache."""
    for name, _ in methods(model):
        if name == "forward" or not may_step(name):
            continue
        signature = signature_of(through(model, name))
        flags = any(one.turns_cache_on for one in signature.of("flag"))
        if signature.ids and (signature.of("cache") or signature.of("position") or flags):
            yield name


def through(model: nn.Module, method: str) -> nn.Module:
    """The model, called by another method of its own, one added to this very object included."""

    def bound(one: nn.Module) -> Callable[..., object]:
        found: Callable[..., object] = getattr(one, method)
        added = vars(one).get(method)
        return MethodType(added.__func__, one) if isinstance(added, MethodType) else found

    return called_by(model, bound)


def called_by(model: nn.Module, bound: Callable[[nn.Module], Callable[..., object]]) -> nn.Module:
    """The model, called by a function.

    Args:
        model: Anybody's; nothing on it changes.
        bound: From a model, this one or a copy, to what is called instead of its forward.
    """
    own, kind = bound(model), type(model)

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        if self.__dict__ is model.__dict__:
            return own(*args, **kwargs)
        return bound(_itself(kind, self))(*args, **kwargs)

    def called(self: nn.Module, *args: object, **kwargs: object) -> object:
        return nn.Module.__call__(self, *args, **kwargs)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = inspect.Signature([itself, *parameters_of(own)])  # type: ignore[attr-defined]
    # a `__call__` of the model's own is the way to its own forward, or refuses to be one
    body = {"forward": forward, "__call__": called, "__module__": kind.__module__, _BEHIND: kind}
    made: nn.Module = nn.Module.__new__(type(kind.__name__, (kind,), body))
    made.__dict__ = model.__dict__
    return made


def behind(model: nn.Module) -> nn.Module | None:
    """The model that an entrance leads to, with its own forward; None: it is no entrance."""
    kind = vars(type(model)).get(_BEHIND)
    return None if kind is None else _itself(kind, model)


def _itself(kind: type[nn.Module], entrance: nn.Module) -> nn.Module:
    """A copy of an entrance as what it was copied from: its `forward` is the model's own again."""
    made = nn.Module.__new__(kind)
    made.__dict__ = entrance.__dict__
    return made
