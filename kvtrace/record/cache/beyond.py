"""Rows of a buffer that attention is let see though the buffer does not count them.

What stands behind the rows written so far is hidden by any right mask, and is left out of a trace.
Where a mask lets it be seen, it was attended to: rows of an earlier text, or none at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvtrace.record.cache.reads import Read
from kvtrace.record.capture.forward import Forward


def rows_seen(forward: Forward, reads: Sequence[Read]) -> dict[int, int]:
    """Updates of buffers of which more is seen than they count.

    Args:
        forward: With its updates and calls.
        reads: What each call was given.

    Returns:
        Number of the update, and of the rows up to the last one that is seen.
    """
    reached: dict[tuple[int, int], int] = {}
    found: dict[int, int] = {}
    for call, read in zip(forward.calls, reads, strict=True):
        if read.source != "cache" or read.update is None or call.visible is None:
            continue
        update = forward.updates[read.update]
        if update.capacity is None or update.length >= update.keys.shape[2]:
            continue
        key = id(call.visible), update.length
        if key not in reached:
            reached[key] = _reach(call.visible, update.length)
        found[read.update] = max(found.get(read.update, 0), reached[key])
    return {index: rows for index, rows in found.items() if rows}


def _reach(visible: Tensor, counted: int) -> int:
    """Rows up to the last one that a last query sees; 0 where that is among those that count.

    Queries before the last may be padding, which some masks let see everything.
    """
    behind = visible[..., -1, counted:]
    columns = behind.reshape(-1, behind.shape[-1]).any(dim=0).nonzero()
    return counted + int(columns[-1]) + 1 if len(columns) else 0
