"""Tensors on their way from a device to main memory, while the device goes on.

The copy runs on a stream of its own into pinned memory; the computing stream never waits for it,
and nobody waits for anything but the copy itself. What is copied is a tensor of our own, so that
the model may change what it was made of at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import torch
from msgspec import Struct
from torch import Tensor

MAX_PINNED_BYTES = 256 << 20
"""A larger copy goes to ordinary memory: pinned memory is taken from everybody."""


class Stream(Protocol):
    """A stream beside the computing one of a device."""

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        """Main memory that the device can write to, [size]."""

    def carry(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Copy once what was queued so far has run; the function returned waits until it is there.

        Args:
            source: On the device; nobody else writes to it.
            target: Part of a buffer.
        """


class SideStream:
    """A stream of an accelerator whose streams and events are like CUDA's."""

    def __init__(self, device: torch.device, module: Any) -> None:
        """Make the stream.

        Args:
            device: It.
            module: What torch calls its module: `torch.cuda`, `torch.xpu`.
        """
        self._device, self._module = device, module
        self._stream = module.Stream(device=device)

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        """Pinned memory, unless it would be much or there is none left; torch keeps freed ones."""
        if size * dtype.itemsize <= MAX_PINNED_BYTES:
            try:
                return torch.empty(size, dtype=dtype, pin_memory=True)
            except RuntimeError:
                pass
        return torch.empty(size, dtype=dtype)

    def carry(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Copy on the side stream; an event says when it is done."""
        event = self._module.Event()
        self._stream.wait_stream(self._module.current_stream(self._device))
        with self._module.stream(self._stream):
            target.copy_(source, non_blocking=True)
            # the memory is not given to anybody else before the copy has read it
            source.record_stream(self._stream)
            event.record(self._stream)
        wait: Callable[[], None] = event.synchronize
        return wait


@cache
def side_stream(device: torch.device) -> Stream | None:
    """The one of a device; None for main memory and for devices without such streams."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    parts = ("Stream", "Event", "stream", "current_stream")
    if not all(hasattr(module, part) for part in parts) or device.type in ("mps", "meta"):
        return None
    return SideStream(device, module)


class Flight(Struct, frozen=True):
    """A copy under way.

    Attributes:
        whole: Where it arrives, one dimension.
    """

    whole: Tensor
    _waits: tuple[Callable[[], None], ...] = ()

    def land(self) -> Tensor:
        """Wait for it."""
        for wait in self._waits:
            wait()
        return self.whole


def fetch(
    tensors: Sequence[Tensor],
    stream_of: Callable[[torch.device], Stream | None] = side_stream,
) -> Flight:
    """Start to copy tensors of one dtype to main memory, one after the other.

    Args:
        tensors: On any devices.
        stream_of: The stream that carries what is on a device.
    """
    groups = [list(group) for _, group in groupby(tensors, key=attrgetter("device"))]
    streams = [stream_of(group[0].device) for group in groups]
    if all(stream is None for stream in streams):
        parts = [_flattened(group).cpu() for group in groups]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Flight(whole.clone() if len(tensors) == 1 and tensors[0].is_cpu else whole)
    first = next(stream for stream in streams if stream is not None)
    whole = first.buffer(sum(one.numel() for one in tensors), tensors[0].dtype)
    return Flight(whole, tuple(_carried(groups, streams, whole)))


def _carried(
    groups: Sequence[list[Tensor]], streams: Sequence[Stream | None], whole: Tensor
) -> Iterator[Callable[[], None]]:
    """Each group to its place; how to wait for those that are on their way."""
    start = 0
    for group, stream in zip(groups, streams, strict=True):
        source = _own(group)
        target = whole[start : start + source.numel()]
        start += source.numel()
        if stream is None:
            target.copy_(source)
        else:
            yield stream.carry(source, target)


def _own(tensors: list[Tensor]) -> Tensor:
    """All of them one after the other, in memory that nobody else has."""
    whole = _flattened(tensors)
    return whole.clone() if len(tensors) == 1 else whole


def _flattened(tensors: list[Tensor]) -> Tensor:
    """All of them one after the other; a single call, where a reshape each would cost more."""
    whole: Tensor = torch._C._nn.flatten_dense_tensors(tensors)
    return whole
