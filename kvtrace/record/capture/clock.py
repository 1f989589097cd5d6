"""How long a forward takes, on devices too that go on when its call has returned.

There a call returns when its work is queued. What counts is from where the queues ended before it
to where they end after it, less what we spent ourselves while they had nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct

if TYPE_CHECKING:
    from kvtrace.record.capture.running import Pass

Marks = tuple[Any, ...]
"""An event of each device that goes on by itself: where its queue ended."""


class Took(Struct, frozen=True):
    """The time of a forward.

    Attributes:
        host_ns: From its call to its return.
        own_ns: Our own within it.
        before, after: Where the devices' queues ended then.
    """

    host_ns: int
    own_ns: int
    before: Marks = ()
    after: Marks = ()

    @property
    def called_ns(self) -> int:
        """Until the call returned, without our own time."""
        return self.host_ns - self.own_ns

    def ns(self) -> int:
        """All of it without our own time; waits until the devices have done it."""
        if not self.after:
            return self.called_ns
        for event in self.after:
            event.synchronize()
        marks = zip(self.before, self.after, strict=True)
        device = max(int(first.elapsed_time(last) * 1e6) for first, last in marks)
        # what they were behind in the end, they worked through while we were busy
        behind = max(0, device - self.host_ns)
        return max(self.called_ns, device - max(0, self.own_ns - behind))


class DeviceClock:
    """Marks the time on the devices of a model."""

    def __init__(
        self,
        devices: Iterable[torch.device],
        module_of: Callable[[torch.device], Any] = torch.get_device_module,
    ) -> None:
        """For the devices of a model's parameters.

        Args:
            devices: They; main memory needs no marks.
            module_of: What torch calls a device's module: `torch.cuda`, `torch.mps`.
        """
        own = dict.fromkeys(one for one in devices if one.type not in ("cpu", "meta"))
        self._modules = [(device, module_of(device)) for device in own]

    def begin(self, one: Pass) -> None:
        """A forward begins now."""
        one.marks = self._mark()
        one.started = perf_counter_ns()

    def took(self, one: Pass, stop: int) -> Took:
        """The time of a forward whose call returned at `stop`, by the performance counter in ns."""
        return Took(stop - one.started, one.own_ns, one.marks, self._mark())

    def _mark(self) -> Marks:
        """Where the queues end now."""
        if not self._modules:
            return ()
        return tuple([_marked(device, module) for device, module in self._modules])


def _marked(device: torch.device, module: Any) -> Any:
    """An event in a device's queue; without events, its queue has run when this returns."""
    if not (hasattr(module, "Event") and hasattr(module, "current_stream")):
        if hasattr(module, "synchronize"):
            module.synchronize()
        return _Moment(perf_counter_ns())
    event = module.Event(enable_timing=True)
    event.record(module.current_stream(device))
    return event


class _Moment(Struct, frozen=True):
    """What an event is, of a device that has none."""

    at_ns: int

    def synchronize(self) -> None:
        """It is over."""

    def elapsed_time(self, last: _Moment) -> float:
        """Milliseconds, as those of an event."""
        return (last.at_ns - self.at_ns) / 1e6
