"""Products of experts in float64: torch multiplies groups of rows in narrower types only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class GroupedProducts(TorchFunctionMode):
    """Multiplies groups one by one where torch has no kernel; all else is left as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {} if kwargs is None else kwargs
        if getattr(func, "__name__", "").lstrip("_") == "grouped_mm":
            product = _one_by_one(*args, **given)
            if product is not None:
                return product
        return func(*args, **given)


def _one_by_one(
    rows: Tensor, weights: Tensor, offs: Tensor | None = None, **more: object
) -> Tensor | None:
    """Rows [rows, in] times the weights [groups, in, out] of their group; None: not of this kind.

    Args:
        rows: Group by group.
        weights: One matrix a group.
        offs: Where each group ends.
        more: What else was asked for.
    """
    wide = rows.dtype == weights.dtype == torch.float64
    if not wide or offs is None or (rows.dim(), weights.dim()) != (2, 3) or any(more.values()):
        return None
    product = rows.new_zeros(rows.shape[0], weights.shape[2])
    start = 0
    for weight, end in zip(weights, offs.tolist(), strict=True):
        product[start:end] = rows[start:end] @ weight
        start = end
    return product
