"""Copies of weights in another dtype, such as autocast makes before a product and keeps."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 64
"""Numbers of a matrix that are compared."""


def is_copy(operand: Tensor, matrix: Tensor) -> bool:
    """Whether a matrix holds what another one does, rounded to its own dtype.

    Args:
        operand: [rows, columns].
        matrix: [rows, columns] as well.
    """
    if operand.device != matrix.device or not operand.is_floating_point():
        return False
    columns = operand.shape[1]
    # numbers of every column, where a row is as long as the way between two of them
    step = max(operand.numel() // _SAMPLE, 1) + (columns > 1)
    at = torch.arange(0, operand.numel(), step, device=operand.device)
    rows, within = at // columns, at % columns
    sample = matrix[rows, within].to(operand.dtype)
    return bool(torch.equal(operand.detach()[rows, within], sample))
