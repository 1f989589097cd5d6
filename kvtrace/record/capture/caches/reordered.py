"""Caches that a model puts into the order of its beams itself: `_reorder_cache`.

`generate` calls that in place of the cache's own method, with what the cache is to become. What it
does may be anything, also nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from types import FunctionType
from typing import Any

from torch import nn

from kvtrace.record.capture.caches.updates import CACHES, HALVES, KINDS, changing
from kvtrace.record.capture.replaced.patch import Method

_NAME = "_reorder_cache"


def patch_reordering(model: nn.Module) -> None:
    """Replace the method where classes of a model's modules have it, while caches are followed."""
    kinds = {type(module) for module in model.modules()}
    for owner in {owner for kind in kinds for owner in kind.__mro__}:
        own = owner.__dict__.get(_NAME)
        if isinstance(own, staticmethod | FunctionType):
            static = isinstance(own, staticmethod)
            CACHES.replace(owner, _NAME, partial(_followed, static=static))


def _followed(original: Method, *, static: bool) -> object:
    def reorder(*args: Any, **kwargs: Any) -> Any:
        given = args if static else args[1:]
        if len(given) != 2:
            return original(*args, **kwargs)
        cache, order = given
        halves = [getattr(cache, part, None) for part in HALVES]
        with ExitStack() as stack:
            for one in halves if all(halves) else [cache]:
                if hasattr(one, "layers"):
                    kind = KINDS["reorder_cache"]
                    stack.enter_context(changing(one, kind, order, known=False))
            return original(*args, **kwargs)

    return staticmethod(reorder) if static else reorder
