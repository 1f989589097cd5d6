"""Whose rows an attention call was given: a cache layer's, made from them, or its own.

By identity of memory first; by content where a module repeats heads or copies before it attends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import CacheUpdate, Forward, Lingering
from kvtrace.record.match import same


class Read(Struct, frozen=True):
    """Where a call's rows came from.

    Attributes:
        source: "cache", "derived" or "uncached".
        update: Which of the forward's updates handed them back, or they were made from.
        lingering: Which of the cache layers left from earlier held them.
        repeats: Times each kv head was repeated before the call.
    """

    source: str
    update: int | None = None
    lingering: int | None = None
    repeats: int = 1


def reads(forward: Forward) -> list[Read]:
    """One per attention call of the forward."""
    handed: dict[int, list[int]] = {}
    for nth, update in enumerate(forward.updates):
        handed.setdefault(update.keys.data_ptr(), []).append(nth)
    left = {one.keys.data_ptr(): index for index, one in enumerate(forward.lingering)}
    found = []
    for place, call in enumerate(forward.calls):
        pointer = call.keys.data_ptr()
        index = _own(forward, place, handed.get(pointer, ()))
        if index is not None and _is(call, forward.updates[index]):
            found.append(Read("cache", index))
            continue
        index = left.get(pointer)
        if index is not None and _is(call, forward.lingering[index]):
            found.append(Read("cache", lingering=index))
            continue
        found.append(_by_content(forward, place, call, found))
    return found


def _own(forward: Forward, place: int, handed: Sequence[int]) -> int | None:
    """Of updates that handed back the same tensor: that of the call's layer, or the last before it.

    A cache may hand out what it holds for another layer, though the layer gave it rows of its own.
    """
    layer, before = forward.calls[place].layer, forward.updates_before[place]
    done = [index for index in handed if index < before] or handed
    mine = [index for index in done if forward.updates[index].layer == layer]
    last = mine or done
    return last[-1] if last else None


def _is(call: AttentionCall, rows: CacheUpdate | Lingering) -> bool:
    """Whether the call was given these very tensors, or their first rows."""
    keys, values = rows.keys, rows.values
    return (
        call.values.data_ptr() == values.data_ptr()
        and _plain(call.keys, keys)
        and _plain(call.values, values)
    )


def _plain(given: Tensor, rows: Tensor) -> bool:
    return (
        given.dtype == rows.dtype
        and given.stride() == rows.stride()
        and given.shape[:2] == rows.shape[:2]
        and given.shape[3] == rows.shape[3]
        and given.shape[2] <= rows.shape[2]
    )


def _by_content(forward: Forward, place: int, call: AttentionCall, earlier: Sequence[Read]) -> Read:
    """Equal to what an update handed back, or made from it, or neither.

    Args:
        forward: It.
        place: Of the call in it.
        call: The call.
        earlier: What the calls before it read.
    """
    before = forward.updates_before[place]
    previous = forward.updates_before[place - 1] if place else 0
    mine = [i for i, one in enumerate(forward.updates[:before]) if one.layer == call.layer]
    recent = list(range(previous, before))
    for index in dict.fromkeys(reversed(mine + recent)):
        repeats = _repeats(call, forward.updates[index])
        if repeats:
            return Read("cache", index, repeats=repeats)
    for index, one in enumerate(forward.lingering):
        repeats = _repeats(call, one) if one.layer == call.layer else 0
        if repeats:
            return Read("cache", lingering=index, repeats=repeats)
    if call.kind == "encoder":
        return Read("uncached")
    # one call may read what several updates handed back: an encoder's rows beside those of the text
    own = [i for i in recent if forward.updates[i].part == call.kind] or recent
    origin = own[-1] if own else _with_the_one_before(forward, place, earlier)
    return Read("uncached") if origin is None else Read("derived", origin)


def _with_the_one_before(forward: Forward, place: int, earlier: Sequence[Read]) -> int | None:
    """The update whose rows a module attends to once more, in other parts: differential heads."""
    if not place:
        return None
    call, before = forward.calls[place], forward.calls[place - 1]
    alike = (call.module, call.kind, call.keys.shape[2]) == (
        before.module,
        before.kind,
        before.keys.shape[2],
    )
    return earlier[-1].update if alike else None


def _repeats(call: AttentionCall, rows: CacheUpdate | Lingering) -> int:
    """How often the heads of these rows are repeated in the call's; 0: they are not these rows."""
    given, mine = call.keys, rows.keys
    fits = (
        given.shape[0] == mine.shape[0]
        and given.shape[2] == mine.shape[2]
        and given.shape[3] == mine.shape[3]
        and call.values.shape[3] == rows.values.shape[3]
        and given.shape[1] % mine.shape[1] == 0
    )
    times = given.shape[1] // mine.shape[1]
    if not fits:
        return 0
    # some models widen what the cache gave them: the numbers are the cache's all the same
    mine, values = _widened(mine, given), _widened(rows.values, call.values)
    heads = range(0, times, max(1, times - 1))
    equal = all(
        same(given[:, first::times], mine) and same(call.values[:, first::times], values)
        for first in heads
    )
    return times if equal else 0


def _widened(rows: Tensor, given: Tensor) -> Tensor:
    """Rows in the dtype they were given on in, if that loses nothing."""
    exact = rows.dtype in (torch.float16, torch.bfloat16) and given.dtype == torch.float32
    return rows.float() if exact else rows
