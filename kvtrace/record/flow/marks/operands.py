"""Which two tensors a torch function multiplies, told by how it was called.

Each reader is given a call and its result, and answers with the operands, with what names their
axes, and whether something was added to the product; or with None where it multiplies no two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvtrace.record.flow.marks.contraction import (
    Contraction,
    of_einsum,
    of_matmul,
    of_tensordot,
)
from kvtrace.record.flow.marks.follow import Args, Kwargs, argument
from kvtrace.record.flow.marks.names import MATMUL

Operands = tuple[Any, Any, Callable[[], Contraction | None], bool]
"""Left, right, names their axes, whether something was added."""

Reader = Callable[[str, Args, Kwargs, Any], Operands | None]


def _matmul(name: str, args: Args, kwargs: Kwargs, out: Any) -> Operands:
    left = argument(args, kwargs, 0, "input", kwargs.get("self"))
    right = argument(args, kwargs, 1, "other", kwargs.get("mat2", kwargs.get("vec")))
    return left, right, lambda: of_matmul(left, right, out), False


def _reversed(name: str, args: Args, kwargs: Kwargs, out: Any) -> Operands:
    right, left = args[0], args[1]
    return left, right, lambda: of_matmul(left, right, out), False


def _added(name: str, args: Args, kwargs: Kwargs, out: Any) -> Operands:
    first = "mat" if name == "addmm" else "batch"
    left = argument(args, kwargs, 1, f"{first}1")
    right = argument(args, kwargs, 2, f"{first}2")
    alpha, beta = float(kwargs.get("alpha", 1)), kwargs.get("beta", 1)
    return left, right, lambda: of_matmul(left, right, out, alpha), bool(beta)


def _einsum(name: str, args: Args, kwargs: Kwargs, out: Any) -> Operands | None:
    # torch spells numbered axes out as letters before any mode sees them
    operands = args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = operands[0]
    if len(operands) != 2:
        return None
    left, right = operands
    return left, right, lambda: of_einsum(args[0], left, right, out), False


def _tensordot(name: str, args: Args, kwargs: Kwargs, out: Any) -> Operands:
    axes = argument(args, kwargs, 2, "dims", 2)
    left, right = args[0], args[1]
    return left, right, lambda: of_tensordot(left, right, out, axes), False


READERS: Mapping[str, Reader] = {
    **dict.fromkeys(MATMUL, _matmul),
    "__rmatmul__": _reversed,
    **dict.fromkeys(("baddbmm", "baddbmm_", "addmm"), _added),
    "einsum": _einsum,
    "tensordot": _tensordot,
}
"""By the name of the function."""
