"""torch.jit sees a model as it was written: it compiles the originals, and its tracing is no step.

What is scripted is looked up by its source and its globals: those of a function of ours that stands
for a `forward` are others. What is traced must hold no operation of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.jit import _recursive, _trace

from kvtrace.record.capture.replaced.entrances import asking
from kvtrace.record.capture.replaced.patch import Method, Patches
from kvtrace.record.capture.replaced.stand_in import as_written
from kvtrace.record.capture.running import our_work

_TRACES = ("trace_module", "_trace_impl", "_get_trace_graph")


@contextmanager
def _without_our_hooks(root: nn.Module) -> Iterator[None]:
    """Hooks are compiled with a module: ours are away meanwhile, and where they were afterwards."""
    before = []
    for module in root.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            theirs = {key: one for key, one in hooks.items() if not _is_of_ours(one)}
            if len(theirs) < len(hooks):
                before.append((hooks, dict(hooks)))
                hooks.clear()
                hooks.update(theirs)
    try:
        yield
    finally:
        for hooks, all_of_them in before:
            hooks.clear()
            hooks.update(all_of_them)


def _is_of_ours(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("kvtrace.record")


def _install(patches: Patches) -> None:
    def originals(original: Method) -> Method:
        def make_stub(function: Any, *args: Any, **kwargs: Any) -> Any:
            return original(as_written(function), *args, **kwargs)

        return make_stub

    def unseen(original: Method) -> Method:
        def trace(*args: Any, **kwargs: Any) -> Any:
            with asking(), our_work():
                return original(*args, **kwargs)

        return trace

    def unhooked(original: Method) -> Method:
        def create(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with _without_our_hooks(module):
                return original(module, *args, **kwargs)

        return create

    patches.replace(_recursive, "make_stub", originals)
    patches.replace(_recursive, "create_script_module", unhooked)
    for name in _TRACES:
        patches.replace(_trace, name, unseen)
        patches.replace(torch.jit, name, unseen)


SCRIPTING = Patches(_install)
"""The patch of what scripts and traces."""
