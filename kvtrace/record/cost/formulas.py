"""FLOPs of single operators from their shapes; multiply-add = 2.

Pure functions. Dense products are counted here, which costs a watched forward least; convolutions
and the like use torch's own registry (`torch.utils.flop_counter`), which leaves out grouped ones.
Attention is counted over the full new × seq rectangle, whatever the mask hides, because that is
what dense kernels multiply.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from kvtrace.record.capture.attention.calls import AttentionCall


class _Formula(Protocol):
    def __call__(self, *args: object, out_val: object, **kwargs: object) -> int: ...


_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "convolution", "_convolution")
_DENSE = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Place of the first factor among the arguments; the second follows it."""
_GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
_GEMV = ("aten::mv", "aten::addmv", "aten::dot", "aten::vdot")
_PICKING = ("aten::index", "aten::index_select")
_FUSED = "aten::_scaled_dot_product_"


def attention_flops(call: AttentionCall) -> tuple[int, int]:
    """Scores q·kᵀ and mix weights·v of one attention call."""
    sequences, heads, new, key_dim = call.queries.shape
    seq, value_dim = call.keys.shape[2], call.values.shape[3]
    pairs = 2 * sequences * heads * new * seq
    return pairs * key_dim, pairs * value_dim * call.mixes


_matters: dict[object, bool] = {}
"""By operator; there are no more of them than torch has."""


def matters(operator: object) -> bool:
    """Whether an operator is counted by `product_flops`, picks matrices or is of higher order."""
    found = _matters.get(operator)
    if found is None:
        found = True
        if isinstance(operator, torch._ops.OpOverload):
            name = operator._schema.name
            product = name.removeprefix("aten::") in _PRODUCTS
            found = product or name in (*_GROUPED, *_GEMV, *_PICKING) or _is_fused(name)
        _matters[operator] = found
    return found


def picks(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator copies some of the matrices in its first argument: those of experts."""
    return operator._schema.name in _PICKING


def _is_fused(name: str) -> bool:
    return name.startswith(_FUSED) and not name.endswith("_backward")


def fused_pairs(operator: torch._ops.OpOverload, args: tuple[object, ...]) -> int:
    """Pairs of a query and a key in a fused attention; 0: the operator is none."""
    if not _is_fused(operator._schema.name):
        return 0
    queries, keys = args[:2]
    if not (isinstance(queries, Tensor) and isinstance(keys, Tensor)):
        return 0
    if queries.is_nested or keys.is_nested:
        return 0
    return queries.shape[:-1].numel() * int(keys.shape[-2])


def product_flops(
    operator: torch._ops.OpOverload,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    out: object,
) -> int:
    """FLOPs of an aten operator; 0 for whatever multiplies no matrices.

    Matrix times vector is counted like the matrix product it is, although torch's counter leaves
    it out.
    """
    packet = operator.overloadpacket
    name = operator._schema.name
    if pairs := fused_pairs(operator, args):
        features = [int(one.shape[-1]) for one in args[1:3] if isinstance(one, Tensor)]
        return 2 * pairs * sum(features)
    place = _DENSE.get(name)
    factors = () if place is None else args[place : place + 2]
    if len(factors) == 2:
        left, right = factors
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            return 2 * left.numel() * int(right.shape[-1])
    if name.removeprefix("aten::") in _PRODUCTS and packet in flop_registry:
        formula: _Formula = flop_registry[packet]
        return int(formula(*args, out_val=out, **kwargs))
    if name in _GROUPED:
        rows, matrices = args[0], args[1]
        if isinstance(rows, Tensor) and isinstance(matrices, Tensor):
            return 2 * rows.numel() * int(matrices.shape[-1])
    if name in _GEMV:
        matrix = max((a for a in args if isinstance(a, Tensor)), key=Tensor.numel)
        return 2 * matrix.numel()
    return 0
