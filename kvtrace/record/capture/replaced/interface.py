"""Level 1: attention that asks transformers' attention interface.

While held, every function that the interface hands out is wrapped; the wrapper calls it first and
then tells the passes running in this thread. The config stays alone, so do masks and logits.
Knows no cache; `read` turns what was seen into an `AttentionCall`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from kvtrace.record.capture.replaced.patch import Method, Patches
from kvtrace.record.capture.replaced.stand_in import StandIn, in_place_of
from kvtrace.record.capture.running import threads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.modeling_utils import AttentionInterface

PAGED = "paged|"
"""How implementations begin that attend to the rows in an engine's pool alone."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.poolless = False


_thread = _Thread()


@contextmanager
def without_pool() -> Iterator[None]:
    """Forwards of this thread have no pool, though an engine may have set the model up for one."""
    before, _thread.poolless = _thread.poolless, True
    try:
        yield
    finally:
        _thread.poolless = before


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, telling the running passes of each call."""
    if isinstance(function, StandIn):
        return function

    # eager attention applies the mask it is given and no other; kernels add the causal rule
    eager = getattr(function, "__name__", "").startswith("eager")

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        for one in threads.passes:
            one.calls.append((args, kwargs, result, eager, len(one.updates)))
        return result

    watched: Callable[..., Any] = in_place_of(function, wrapper)
    return watched


class _Wrappers(dict[Callable[..., Any], Callable[..., Any]]):
    """By function; made when they are first asked for."""

    def __missing__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        found = self[function] = _watched(function)
        return found


def _install(patches: Patches) -> None:
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.modeling_utils import AttentionInterface

    wrappers = _Wrappers()

    def get_interface(original: Method) -> Method:
        def get_interface(self: AttentionInterface, *args: Any, **kwargs: Any) -> Any:
            running = threads.passes
            if not running or kwargs:
                return wrappers[original(self, *args, **kwargs)]
            # every layer of a forward asks the same, and what answers is slow
            known, key = running[-1].interfaces, (id(self), *args)
            try:
                found = known.get(key)
            except TypeError:  # what nobody can look up
                return wrappers[original(self, *args)]
            if found is None:
                found = known[key] = wrappers[original(self, *args)]
            return found

        return get_interface

    def get_item(original: Method) -> Method:
        def get_item(self: AttentionInterface, key: str) -> Any:
            return wrappers[original(self, key)]

        return get_item

    def implementation(original: property) -> property:
        # masks are made by this name too: for a pool's, none is made at all
        def named(self: PreTrainedConfig) -> Any:
            name = asked(self)
            return name.removeprefix(PAGED) if _thread.poolless and name else name

        asked = cast("Callable[[PreTrainedConfig], str | None]", original.fget)
        return property(named, original.fset, original.fdel, original.__doc__)

    patches.replace(PreTrainedConfig, "_attn_implementation", implementation)
    patches.replace(AttentionInterface, "get_interface", get_interface)
    patches.replace(AttentionInterface, "__getitem__", get_item)


INTERFACE = Patches(_install, needs="transformers.modeling_utils")
"""The interface's patches; held by every watcher."""
