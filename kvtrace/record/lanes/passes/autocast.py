"""Autocast as it was when the model ran, so that the same tokens are computed again in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from kvtrace.record.lanes.passes.grouped import GroupedProducts


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


@contextmanager
def as_then(autocast: Autocast | None, dtype: object = None) -> Iterator[None]:
    """On as it was; off where a dtype is asked for, in which then everything can be multiplied."""
    with ExitStack() as both:
        if autocast is not None:
            off = dtype is not None
            both.enter_context(torch.autocast(autocast.device, autocast.dtype, enabled=not off))
        if dtype is not None:
            both.enter_context(GroupedProducts())
        yield
