"""The part of a tensor that is in this process, where several share it."""

from __future__ import annotations

from typing import cast

from torch import Tensor


def here(tensor: Tensor) -> Tensor:
    """The shard of a distributed tensor that this process holds; any other tensor as it is."""
    return cast(Tensor, getattr(tensor, "_local_tensor", tensor))
