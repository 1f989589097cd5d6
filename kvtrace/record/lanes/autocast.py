"""Autocast as it was when the model ran, so that the same tokens are computed again in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Autocast:
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


def as_then(autocast: Autocast | None, dtype: object = None) -> AbstractContextManager[object]:
    """On as it was; off where a dtype is asked for."""
    if autocast is None:
        return nullcontext()
    return torch.autocast(autocast.device, dtype=autocast.dtype, enabled=dtype is None)
