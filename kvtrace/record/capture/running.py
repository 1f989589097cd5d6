"""Which forwards are running, per thread. The joint between class-wide patches and watchers.

A patch sees a call without knowing whose it is; it asks here for the passes that run in its
thread. Threads do not see each other's passes.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvtrace.record.capture.attention.calls import AttentionCall
    from kvtrace.record.capture.caches.tracker import CacheTracker
    from kvtrace.record.capture.clock import Marks
    from kvtrace.record.capture.forward import Keep, KeepLate, Recurrent
    from kvtrace.record.capture.replaced.choices import Chooser
    from kvtrace.record.flow import FlowWatch
    from kvtrace.record.paged.engine import PagedUpdate
    from kvtrace.record.paged.split import Packed


RawCall = tuple[tuple[Any, ...], dict[str, Any], Any, bool, int]
"""(arguments, keyword arguments, result, eager, cache updates before it) of an attention call.

Plain tuples: they are made in the middle of a forward, where every instruction is a cold one.
"""


def module_of(raw: RawCall) -> Any:
    """The module that asked for its attention."""
    return raw[0][0] if raw[0] else raw[1].get("module")


class Followed(NamedTuple):
    """An attention call that the data flow showed.

    Attributes:
        call: It.
        before: Cache updates before it.
    """

    call: AttentionCall
    before: int


RawUpdate = tuple[Any, int, Tensor, Tensor, tuple[Tensor, Tensor]]
"""(cache, layer, keys handed in, values handed in, what was handed back) of a cache update."""

Verdict = tuple[bool, "tuple[Tensor, Tensor] | None"]
"""(untouched since last seen, what was handed back last time if not) of a cache layer."""


@dataclass(slots=True)
class Pass:
    """A forward that is running; patches append to it.

    Attributes:
        names: id of each module of the watched model to its path.
        tracker: Knows the caches this watcher has met.
        flow: What watches the data flow for this watcher, if anything does.
        choosing: Is shown what the forward selects (experts, slots), if anybody wants to know.
        calls: Attention calls, raw or already read.
        updates: Cache updates.
        recurrent: Recurrent memory written.
        depth: Nested `update` calls; only the outermost counts.
        verdicts: id of each cache updated to the verdicts on its layers, as it was found.
        nested: Forwards of the same watcher within this one.
        started: When it began, by the performance counter in ns.
        marks: Where the devices' queues ended then.
        own_ns: Time spent in patches.
        keep: Given each call of the data flow that read from no known cache, while the forward
            runs; what it returns is kept in the call's place.
        keep_late: The same of all calls of a forward that is over, where that is early enough.
        paged: Updates of a pool that requests share.
        packed: The requests of a packed forward.
        interfaces: What answered to those who asked for their attention, by what they asked.
    """

    names: Mapping[int, str]
    tracker: CacheTracker
    flow: FlowWatch | None = None
    choosing: Chooser | None = None
    calls: list[RawCall | Followed] = field(default_factory=list)
    updates: list[RawUpdate] = field(default_factory=list)
    recurrent: list[Recurrent] = field(default_factory=list)
    verdicts: dict[int, dict[int, Verdict]] = field(default_factory=dict)
    depth: int = 0
    nested: int = 0
    started: int = 0
    marks: Marks = ()
    own_ns: int = 0
    keep: Keep | None = None
    keep_late: KeepLate | None = None
    paged: list[PagedUpdate] = field(default_factory=list)
    packed: Packed | None = None
    interfaces: dict[tuple[object, ...], Callable[..., Any]] = field(default_factory=dict)

    def kept_by(self, keep: Keep, late: KeepLate | None) -> None:
        """Calls are given to these."""
        self.keep, self.keep_late = keep, late

    @property
    def num_calls(self) -> int:
        """Attention calls so far; one that asked for its attention and was followed counts once."""
        followed = [raw for raw in self.calls if isinstance(raw, Followed)]
        if not followed:
            return len(self.calls)
        asked = {
            self.names.get(id(module_of(raw)))
            for raw in self.calls
            if not isinstance(raw, Followed)
        }
        return len(self.calls) - sum(raw.call.module in asked for raw in followed)


class _Threads(threading.local):
    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.ours = 0


threads = _Threads()
"""What runs in this thread."""


def passes() -> list[Pass]:
    """Passes running in this thread, outermost first. The list is live: push and remove here."""
    return threads.passes


class _Ours:
    """Counts, for each thread, what is ours."""

    def __enter__(self) -> None:
        threads.ours += 1

    def __exit__(self, *_: object) -> None:
        threads.ours -= 1


_OURS = _Ours()


def our_work() -> AbstractContextManager[None]:
    """What runs inside is ours, not the model's: whoever listens to the model looks away."""
    return _OURS


def depth_of_our_work() -> int:
    """How many `our_work` of this thread are inside of each other now."""
    return threads.ours
