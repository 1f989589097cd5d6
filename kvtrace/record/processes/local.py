"""The part of a tensor that is in this process, where several share it, and where it lies."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


def here(tensor: Tensor) -> Tensor:
    """The shard of a distributed tensor that this process holds; any other tensor as it is."""
    return cast(Tensor, getattr(tensor, "_local_tensor", tensor))


def device_of(model: nn.Module) -> torch.device:
    """Where a model is, as its first parameter says; the CPU where it has none."""
    return next((one.device for one in model.parameters()), torch.device("cpu"))


def address(tensor: Tensor) -> int:
    """Where a tensor's memory starts; views share it. 0 for tensors without memory."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a wrapper, or functorch
        return 0
