"""Which slots of what an attention was given hold rows, and which of them are known.

Pure arithmetic on digests and masks: arrays in, arrays out. Shapes are [sequences, seq] unless a
line says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

UNWRITTEN = -1
"""Cell of a slot that no query has ever seen."""
NOWHERE = -1
"""Slot of a row that was not there before."""
FAR = 256
"""Rows by which a whole cache may have moved in one step, where the tokens were fewer."""


def seen(visible: Tensor | None, seq: int) -> Flags:
    """Slots that some query of some sequence sees, [seq]."""
    if visible is None:
        return np.ones(seq, bool)
    table = visible.detach().flatten(0, -2).any(0).cpu().numpy()
    found: Flags = np.broadcast_to(table, (seq,))
    return found


def padding(visible: Tensor | None, sequences: int, seq: int) -> Numbers:
    """Slots at the left that no query sees but its own, per sequence, [sequences]."""
    none = np.zeros(sequences, np.int64)
    if visible is None or visible.shape[-1] < seq or visible.shape[-2] not in (1, seq):
        return none
    table = visible.detach().any(1).cpu().numpy()
    others = table & ~np.eye(seq, dtype=bool)
    shown = np.broadcast_to(others.any(1), (sequences, seq))
    # the newest row of all is seen by nobody else either
    first = np.where(shown.any(1), shown.argmax(1), 0)
    return np.where(first < seq - 1, first, 0)


def equal_slots(now: Iterable[Numbers], before: Iterable[Numbers]) -> Flags:
    """Slot by slot, whether all digests of one sequence are what they were, as far as both go."""
    found: Flags | None = None
    for mine, theirs in zip(now, before, strict=True):
        count = min(mine.shape[-1], theirs.shape[-1])
        equal = mine[..., :count] == theirs[..., :count]
        found = equal if found is None else found & equal
    assert found is not None
    return found


def paired(now: Numbers, old: Numbers, wanted: Flags, free: Flags, reach: int) -> Numbers:
    """For each wanted row the free old slot of the same content, [seq]; `NOWHERE` without one.

    Rows mostly move together, so the move that explains most of them is taken first; what is left
    is matched in order. Equal rows are told apart by nothing else.

    Args:
        now: Digests of one sequence, [seq].
        old: Those of the step before, [slots before].
        wanted: Rows to be found, [seq].
        free: Old slots that are not taken yet, [slots before].
        reach: How far rows may have moved together.
    """
    origin = np.full(len(now), NOWHERE)
    slots = np.flatnonzero(wanted)
    if not len(slots) or not free.any():
        return origin
    free, best = free.copy(), np.empty(0, np.int64)
    moves = {*range(1, min(reach, FAR, len(old)) + 1), len(old) - len(now)}
    for move in sorted(one for one in moves if one > 0):
        inside = slots[slots + move < len(old)]
        fits = inside[free[inside + move] & (old[inside + move] == now[inside])]
        if len(fits) > len(best):
            best = fits
            chosen = move
        if len(best) == len(slots):
            break
    if len(best):
        origin[best] = best + chosen
        free[best + chosen] = False
    places: dict[int, list[int]] = {}
    for slot in np.flatnonzero(free).tolist():
        places.setdefault(int(old[slot]), []).append(slot)
    for slot in slots[origin[slots] == NOWHERE].tolist():
        found = places.get(int(now[slot]))
        if found:
            origin[slot] = found.pop(0)
    return origin


def equally_many(missing: Flags, known: Flags, *, last: bool) -> Numbers:
    """Slots to be written, as many in each sequence, [sequences, rows].

    A sequence that has fewer new rows than another writes its last known ones once more, or its
    first.
    """
    wanted: list[list[int]] = [np.flatnonzero(line).tolist() for line in missing]
    most = max(map(len, wanted), default=0)
    for line, slots in zip(known, wanted, strict=True):
        short = most - len(slots)
        if short:
            there = np.flatnonzero(line)
            slots += (there[-short:] if last else there[:short]).tolist()
            slots.sort()
    return np.array(wanted, np.int64).reshape(len(wanted), most)


def in_turn(slots: Numbers, last: int) -> Numbers:
    """Slots in the order a ring is filled: those after the last known one first."""
    after = slots[slots > last]
    return np.concatenate([after, slots[slots <= last]]) if len(after) else slots


def given_tokens(order: Numbers, new: int, others: Flags) -> Numbers:
    """Of new rows, in their order, those that stand for this forward's tokens.

    Args:
        order: Slots of new rows, in their order.
        new: Tokens of the forward.
        others: Slots of rows that are all zero, or that the last token does not see.
    """
    if len(order) <= new:
        return order
    real = order[~others[order]]
    return real[-new:] if len(real) >= new else order[-new:]
