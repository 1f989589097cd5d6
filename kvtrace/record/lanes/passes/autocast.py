"""In which numbers a pass multiplies: autocast as it was when the model ran, or one wider dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Autocast(Struct, frozen=True):
    """What was on.

    Attributes:
        device: Its type.
        dtype: That matrices are multiplied in.
    """

    device: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The dtype as a trace calls it."""
        return str(self.dtype).removeprefix("torch.")


def autocast_of(device: torch.device) -> Autocast | None:
    """What is on now; None: nothing is."""
    try:
        if not torch.is_autocast_enabled(device.type):
            return None
        return Autocast(device.type, torch.get_autocast_dtype(device.type))
    except RuntimeError:  # a device that knows no autocast
        return None


@contextmanager
def as_then(autocast: Autocast | None, dtype: object) -> Iterator[None]:
    """On as it was; off where a dtype is asked for, in which then everything can be multiplied."""
    with ExitStack() as both:
        if autocast is not None:
            off = dtype is not None
            both.enter_context(torch.autocast(autocast.device, autocast.dtype, enabled=not off))
        if dtype is not None:
            both.enter_context(GroupedProducts())
        yield


class GroupedProducts(TorchFunctionMode):
    """Products of experts in float64: torch multiplies groups of rows in narrower types only.

    Groups are multiplied one by one where torch has no kernel; all else is left as it is.
    """

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
