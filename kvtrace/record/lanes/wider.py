"""A copy of a tensor in a wider dtype, in memory that costs little to get.

The first touch of fresh memory costs a page fault for every 4 KiB, which for all weights of a
model is twice as dear as the conversion itself. numpy asks the system for huge pages where it
makes large arrays; torch does not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_KINDS = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex128: np.complex128,
}

_LARGE_BYTES = 1 << 22
"""From here on numpy asks for huge pages."""


def wider(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of its numbers, where the tensor is; nothing is shared with it.

    Args:
        tensor: Of any shape.
        dtype: Of the copy.
    """
    given, kind = tensor.detach(), _KINDS.get(dtype)
    plain = type(given) is Tensor and given.device.type == "cpu" and given.is_contiguous()
    if kind is None or not plain or given.numel() * dtype.itemsize < _LARGE_BYTES:
        return given.to(dtype, copy=True)
    return torch.from_numpy(np.empty(given.shape, kind)).copy_(given)
