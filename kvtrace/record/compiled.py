"""Compiled code runs eagerly while it is watched: what it attends to can't be seen otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

EAGERLY = "compiled code was run eagerly: milliseconds are those of eager code"


def run_eagerly() -> Callable[[], None]:
    """From now on no code is compiled, and compiled code runs as it was written; returns the end.

    Hooks inside a graph would be compiled with it, or break it, or never run.
    """
    stance = torch.compiler.set_stance("force_eager")
    stance.__enter__()
    return partial(stance.__exit__, None, None, None)


def is_compiled(model: nn.Module) -> bool:
    """Whether some of a model's code is compiled, by its user or by `generate`."""
    return any(_has_compiled_code(module) for module in model.modules())


def _has_compiled_code(module: nn.Module) -> bool:
    own = module.__dict__
    if own.get("_compiled_call_impl") is not None or own.get("_compiled_call") is not None:
        return True
    return hasattr(own.get("forward"), "_torchdynamo_orig_callable") or "_orig_mod" in (
        module._modules
    )
