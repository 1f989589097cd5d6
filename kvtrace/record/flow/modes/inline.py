"""Scripted functions run as the Python they were made from, while the data flow is followed.

torch.jit shows no mode what a function does. Its Python calls the same operations one by one: the
numbers are the same bits wherever torch.jit fuses none, as on a CPU. What it would fuse, or what
asks whether it is scripted, runs as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvtrace.record.capture.replaced.patch import Method, Patches
from kvtrace.record.modes import FUNCTION_MODES


def _install(patches: Patches) -> None:
    def make(original: Method) -> Method:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            python = getattr(self, "_torchdynamo_inline", None)
            if python is not None and _followed() and _as_python(python, (*args, *kwargs.values())):
                return _run(python, args, kwargs)
            return original(self, *args, **kwargs)

        return call

    patches.replace(torch.jit.ScriptFunction, "__call__", make)


INLINED = Patches(_install)
"""The patch of scripted functions."""


def _followed() -> bool:
    """Whether a mode would see what runs now, in this thread."""
    return FUNCTION_MODES.top is not None


def _run(python: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run it; where it makes scores itself, a mode asleep would not have heard of them."""
    families = getattr(FUNCTION_MODES.top, "families", None)
    before = getattr(families, "begun", 0)
    out = python(*args, **kwargs)
    if families is not None:
        families.inlined = True
        families.odd |= families.begun != before
    return out


def _as_python(python: Any, given: tuple[object, ...]) -> bool:
    """Whether its Python calculates what the scripted function does, bit for bit."""
    code = getattr(python, "__code__", None)
    if code is None or "is_scripting" in code.co_names or torch._C._jit_can_fuse_on_cpu():
        return False
    return all(one.device.type == "cpu" for one in given if isinstance(one, Tensor))
