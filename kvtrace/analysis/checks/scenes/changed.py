"""Which attended rows replaced another one in their slot since the step before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.errors import TraceError
from kvtrace.trace import CacheView, Trace

Flags = NDArray[np.bool_]


def changed_rows(
    trace: Trace, number: int, layer: int, sequence: int, view: CacheView
) -> tuple[Flags, set[int], dict[str, Flags]]:
    """Rows that replaced another one in their slot since the step before; positions of those.

    And of which of them the key, or the value, is still that of the other one.

    A cell is the same row for ever; another cell may still hold the same numbers, where rows
    were recorded anew. Rows that only moved to another slot are not changed.
    """
    out, lost = np.zeros(len(view.cells), bool), set[int]()
    half = {"k": out.copy(), "v": out.copy()}
    step = trace.step(number)
    if step.parent is None or any(event.kind != "crop" for event in step.events):
        return out, lost, half
    try:
        before = trace.cache(step.parent, layer, sequence)
    except (TraceError, IndexError):
        return out, lost, half
    if _shifted(view, before):
        return out, lost, half
    moved_up = _moved_up(view, before)
    held = {slot: row for row, slot in enumerate(before.slots.tolist())}
    there, earlier = set(view.cells.tolist()), set(before.cells.tolist())
    for row, (slot, cell) in enumerate(zip(view.slots.tolist(), view.cells.tolist(), strict=True)):
        old = held.get(slot)
        if old is None or cell in earlier or int(before.cells[old]) in there or slot > moved_up:
            continue
        same = _same(view, row, before, old)
        out[row] = not all(same.values())
        if out[row]:
            half["k"][row], half["v"][row] = same["k"], same["v"]
            lost.add(int(before.positions[old]))
    return out, lost, half


def _shifted(view: CacheView, before: CacheView) -> bool:
    """Whether most rows that are still there stand in another slot: slots mean nothing then."""
    then = dict(zip(before.cells.tolist(), before.slots.tolist(), strict=True))
    now = zip(view.cells.tolist(), view.slots.tolist(), strict=True)
    moved = [int(then[cell]) != int(slot) for cell, slot in now if cell in then]
    return len(moved) < 2 * sum(moved)


def _moved_up(view: CacheView, before: CacheView) -> int:
    """The first slot whose row stood further behind: from there on rows were dropped, not replaced.

    The next slot after all of them where none did.
    """
    then = dict(zip(before.cells.tolist(), before.slots.tolist(), strict=True))
    now = zip(view.cells.tolist(), view.slots.tolist(), strict=True)
    up = (slot for cell, slot in now if cell in then and slot < then[cell])
    return int(min(up, default=max(view.slots.tolist(), default=0) + 1))


def _same(view: CacheView, row: int, before: CacheView, old: int) -> dict[str, bool]:
    """Whether the keys, and the values, of two rows hold the same numbers."""
    pairs = {"k": (view.keys, before.keys), "v": (view.values, before.values)}
    return {
        name: np.array_equal(now[:, row], then[:, old], equal_nan=True)
        for name, (now, then) in pairs.items()
    }
