"""The ways into a model: calling it, and calling its `forward` without the call around it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from kvtrace.record.capture.replaced.overlay import Overlay
from kvtrace.record.capture.symbolic import is_symbolic

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(the original forward, arguments, keyword arguments) → its result."""


class _Asking(threading.local):
    now = False


_asking = _Asking()


def is_asking() -> bool:
    """Whether a model is called by us, in this thread: nobody's step."""
    return _asking.now


@contextmanager
def asking() -> Iterator[None]:
    """Calls made inside are ours."""
    before, _asking.now = _asking.now, True
    try:
        yield
    finally:
        _asking.now = before


def entrances(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model, and the encoder that generate calls on its own."""
    found = [("model", model)]
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        encoder: object = cast(Any, model).get_encoder()
        if isinstance(encoder, nn.Module) and encoder is not model:
            found.append(("encoder", encoder))
    return found


def around_forward(module: nn.Module, around: Around) -> Callable[[], None]:
    """Put something around one module's `forward`, whoever calls it; returns how to stop."""
    if isinstance(module, torch.jit.ScriptModule):
        return lambda: None
    if "forward" in module.__dict__:
        return _on_instance(module, around)
    owner: Any = next((one for one in type(module).__mro__ if "forward" in one.__dict__), None)
    if owner is None or owner is nn.Module or not callable(owner.__dict__["forward"]):
        return lambda: None

    def make(overlay: Overlay) -> Any:
        original = overlay.under

        def forward(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if self is not module or overlay.over or is_symbolic():
                return original(self, *args, **kwargs)
            return around(functools.partial(original, self), args, kwargs)

        return forward

    return Overlay(owner, "forward", make).stop


def _on_instance(module: nn.Module, around: Around) -> Callable[[], None]:
    def make(overlay: Overlay) -> Any:
        own = overlay.under

        def forward(*args: Any, **kwargs: Any) -> Any:
            return own(*args, **kwargs) if overlay.over else around(own, args, kwargs)

        return forward

    return Overlay(module, "forward", make).stop
