"""Functions that make products, and softmax: where they are looked up, in torch and by a model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType

import torch
import torch.nn.functional as F

FUNCTIONS = (
    *((torch, name) for name in ("matmul", "bmm", "mm", "mv", "baddbmm", "addmm")),
    *((torch, name) for name in ("einsum", "tensordot")),
    *((torch.functional, name) for name in ("einsum", "tensordot")),
    (torch.linalg, "matmul"),
    *((F, name) for name in ("linear", "scaled_dot_product_attention")),
)
"""Where functions that make products are looked up: replaced while a forward runs, no longer."""

METHODS = (
    *("__matmul__", "__rmatmul__", "matmul", "bmm", "mm", "mv"),
    *("baddbmm", "baddbmm_", "addmm"),
)
"""Methods of tensors that make products: to replace one costs every tensor its caches."""

SOFTMAX = ((torch, "softmax"), (torch.special, "softmax"))
"""Where functions are looked up that are heard of, too; `F.softmax` calls the method."""


def imported(modules: Iterable[str]) -> list[tuple[ModuleType, str]]:
    """Where the model's own code has taken such functions by name."""
    known = {id(getattr(owner, name)) for owner, name in (*FUNCTIONS, *SOFTMAX)}
    own = [sys.modules[name] for name in dict.fromkeys(modules) if name in sys.modules]
    return [
        (module, name)
        for module in own
        for name, value in list(vars(module).items())
        if id(value) in known and (module, name) not in FUNCTIONS
    ]
