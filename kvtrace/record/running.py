"""Which forwards are running, per thread. The joint between class-wide patches and watchers.

A patch sees a call without knowing whose it is; it asks here for the passes that run in its
thread. Threads do not see each other's passes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from kvtrace.record.caches import CacheTracker, RawUpdate
    from kvtrace.record.forward import Recurrent


@dataclass(slots=True)
class RawCall:
    """An attention call as the patch saw it.

    Attributes:
        module: The attention module.
        args: Positional arguments after the module.
        kwargs: Keyword arguments.
        output: What came back, [sequences, new, heads, value_dim].
        eager: The function masks only by the mask it is given.
        updates_before: Cache updates seen before it in this forward.
    """

    module: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    output: Tensor
    eager: bool
    updates_before: int


@dataclass(slots=True)
class Pass:
    """A forward that is running; patches append to it.

    Attributes:
        names: id of each module of the watched model to its path.
        tracker: Knows the caches this watcher has met.
        calls: Attention calls.
        updates: Cache updates.
        recurrent: Recurrent memory written.
        depth: Nested `update` calls; only the outermost counts.
        own_ns: Time spent in patches.
    """

    names: Mapping[int, str]
    tracker: CacheTracker
    calls: list[RawCall] = field(default_factory=list)
    updates: list[RawUpdate] = field(default_factory=list)
    recurrent: list[Recurrent] = field(default_factory=list)
    depth: int = 0
    own_ns: int = 0


class _Threads(threading.local):
    def __init__(self) -> None:
        self.passes: list[Pass] = []


_threads = _Threads()


def passes() -> list[Pass]:
    """Passes running in this thread, outermost first. The list is live: push and remove here."""
    return _threads.passes
