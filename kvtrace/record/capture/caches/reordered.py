"""Caches that are put into the order of their beams by code of somebody's.

`generate` calls a model's `_reorder_cache` in place of the cache's own method, with what the cache
is to become. An encoder-decoder cache of somebody's, or one object with a method of its own, is
asked as any cache. What all these do may be anything, also nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType
from typing import Any
from weakref import ref

from torch import nn

from kvtrace.record.capture.caches.updates import CACHES, HALVES, KINDS, changing, patch_class
from kvtrace.record.capture.replaced.patch import Method
from kvtrace.record.theirs import CACHE, ENCODER_DECODER_CACHE

_NAME = "_reorder_cache"

_TAKING = frozenset(("reorder_cache", "batch_repeat_interleave", "batch_select_indices"))
"""Methods of a cache that say whose rows each sequence goes on with."""


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
        with _both_changing(given[0], "reorder_cache", given[1]):
            return original(*args, **kwargs)

    return staticmethod(reorder) if static else reorder


@contextmanager
def _both_changing(cache: object, name: str, given: object) -> Iterator[None]:
    """Take note of what somebody's code does to a cache, or to both halves of one."""
    halves = [getattr(cache, part, None) for part in HALVES]
    with ExitStack() as stack:
        for one in halves if all(half is not None for half in halves) else [cache]:
            if hasattr(one, "layers"):
                stack.enter_context(changing(one, KINDS[name], given, known=False))
        yield


def patch_given(cache: object) -> None:
    """A cache class that was made after the patches, or is no subclass of `Cache`.

    So are encoder-decoder caches of somebody's, and methods that were set on one object.
    """
    if cache is None or isinstance(cache, tuple | list):
        return
    for part in HALVES:
        patch_given(getattr(cache, part, None))
    outer = hasattr(cache, HALVES[0])
    for owner in type(cache).__mro__:
        if outer:
            _patch_outer(owner)
        elif owner is not object:
            patch_class(CACHES, owner)
    if has_own_methods(cache):
        for name in _TAKING & vars(cache).keys():
            if callable(vars(cache)[name]):
                CACHES.replace_on(cache, name, partial(_taking_alone, cache=ref(cache), name=name))


def _patch_outer(owner: type) -> None:
    """A class of somebody's that holds two caches; what transformers' own does, the halves tell."""
    if owner in (object, CACHE.there(), ENCODER_DECODER_CACHE.there()):
        return
    for name in _TAKING:
        if isinstance(owner.__dict__.get(name), FunctionType):
            CACHES.replace(owner, name, partial(_taking, name=name))


def has_own_methods(cache: object) -> bool:
    """Whether this one object takes rows over otherwise than its class."""
    return not _TAKING.isdisjoint(getattr(cache, "__dict__", ()))


def _taking(original: Method, *, name: str) -> Method:
    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()), None)
        with _both_changing(self, name, given):
            return original(self, *args, **kwargs)

    return take


def _taking_alone(original: Method, *, cache: ref[Any], name: str) -> Method:
    def take(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()), None)
        with _both_changing(cache(), name, given):
            return original(*args, **kwargs)

    return take
