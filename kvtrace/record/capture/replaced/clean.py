"""Copies and pickles of a watched model hold nothing of ours.

Scripts copy and save their models in the middle of a run. While anybody watches, what a module
gives to `copy` and `pickle` leaves our hooks out, and has its own `forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kvtrace.record.capture.replaced.patch import Method, Patches
from kvtrace.record.capture.replaced.stand_in import StandIn, as_written


def _install(patches: Patches) -> None:
    def make(original: Method) -> Method:
        def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:  # noqa: N807 - it replaces one
            reduced = original(self, protocol)
            if not (isinstance(reduced, tuple) and len(reduced) > 2):
                return reduced
            state = reduced[2]
            return (*reduced[:2], _clean(state), *reduced[3:]) if type(state) is dict else reduced

        return __reduce_ex__

    patches.replace(nn.Module, "__reduce_ex__", make)


CLEAN = Patches(_install)
"""The patch; held by every watcher."""


def _clean(state: Mapping[str, Any]) -> dict[str, Any]:
    """A module's attributes without ours."""
    out = dict(state)
    mine = {
        key
        for name, hooks in state.items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
        for key, hook in hooks.items()
        if str(getattr(hook, "__module__", "")).startswith("kvtrace.record")
    }
    if mine:
        for name, hooks in state.items():
            if "_hooks" in name and isinstance(hooks, dict):
                kept = type(hooks)()
                kept.update((key, hook) for key, hook in hooks.items() if key not in mine)
                out[name] = kept
    forward = state.get("forward")
    if isinstance(forward, StandIn):
        out["forward"] = as_written(forward)
    return out
