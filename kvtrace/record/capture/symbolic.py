"""Whether what runs holds no numbers: code that is compiled, exported, traced or transformed.

Whoever runs a model on what stands for tensors writes down, or changes, every operation that it
sees. One of ours among them would become a part of what is made, and there is nothing to look at.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

TRANSFORMED = "torch.func (vmap, grad) runs it on tensors that can't be looked at"

_tracing = torch._C._get_tracing_state
_transformed = torch._C._functorch.peek_interpreter_stack
_mode = torch._C._get_dispatch_mode
_FAKE, _PROXY = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY


def is_symbolic() -> bool:
    """Whether this runs in torch.compile, torch.export, torch.jit.trace, make_fx or the like."""
    return (
        torch.compiler.is_compiling()  # first, for the compiler reads this too
        or _tracing() is not None
        or _transformed() is not None
        or is_fx_symbolic_tracing()
        or _mode(_PROXY) is not None
        or _mode(_FAKE) is not None
    )


def is_transformed() -> bool:
    """Whether this runs within a transformation of torch.func: vmap, grad, jvp."""
    return _transformed() is not None


def transformed(name: str) -> str:
    """What is said of a model of this class that ran there."""
    return f"{name}: {TRANSFORMED}; record it called as it is"


def is_written_down() -> bool:
    """Whether each operation becomes a part of a graph: of torch.fx, torch.export, torch.jit."""
    return (
        torch.compiler.is_compiling()
        or _tracing() is not None
        or _mode(_PROXY) is not None
        or is_fx_symbolic_tracing()
    )


def is_shape_only(given: Iterable[object]) -> bool:
    """Whether a tensor among what a model is given has a shape and no numbers."""
    return any(isinstance(one, Tensor) and one.is_meta for one in given)
