"""Which module's method is running, where no `forward` is: told by the frames that run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FrameType

from torch import nn

_FRAMES = 24
"""Callers that are looked at."""


def method_path(known: Mapping[int, str]) -> str:
    """Path of the module whose method runs, as the outermost module around it calls it.

    Args:
        known: Paths of modules by their identity.

    Returns:
        Empty where no method of a module within another one runs.
    """
    owners = list(_owners())
    if not owners:
        return ""
    innermost = owners[0]
    path = known.get(id(innermost))
    if path is not None:
        return path
    for owner in reversed(owners[1:]):
        found = next((path for path, one in owner.named_modules() if one is innermost), "")
        if found:
            return found
    return ""


def _owners() -> Iterator[nn.Module]:
    """Modules with a method that runs, the innermost first; torch's own are left out."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            return
        code = frame.f_code
        if code.co_argcount:
            own = frame.f_locals.get(code.co_varnames[0])
            theirs = not type(own).__module__.startswith("torch.")
            if isinstance(own, nn.Module) and theirs and hasattr(type(own), code.co_name):
                yield own
        frame = frame.f_back
