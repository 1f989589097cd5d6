"""Rows that stand for no single token: summaries of several, learned rows, second streams.

Who sees a row tells it where a text begins: each token is first seen by its own query, one after
the other. Later a new row is what its left neighbour is. Pure arithmetic on positions and masks.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kvtrace.record.flow.rows.slots import Flags, Numbers
from kvtrace.record.flow.rows.texts import GivenRows, Text
from kvtrace.trace import NO_TOKEN


def for_none(positions: Numbers) -> Flags:
    """Which positions are those of rows that stand for no single token."""
    found: Flags = positions < NO_TOKEN >> 1
    return found


def slots_of_tokens(positions: Numbers, slots: Numbers) -> tuple[int, ...] | None:
    """Slots of the rows that stand for a token each; None where all do.

    Args:
        positions: Of every slot.
        slots: Those that hold rows.
    """
    none = for_none(positions[slots])
    return tuple(slots[~none].tolist()) if none.any() else None


def of_tokens(given: GivenRows, *, computed: bool) -> Flags | None:
    """Which rows of a text that begins stand for one token each, [seq]; None: nothing says no.

    Args:
        given: What the site was given.
        computed: The step read nothing.
    """
    seq, new = given.keys.shape[2], given.new
    if new < 2:
        return None
    if seq == new:
        others = computed and given.tokens not in (0, new)
        return np.zeros(seq, bool) if others and not _ends_in_text(given) else None
    if 0 < given.tokens < seq and new != given.tokens:
        return np.zeros(seq, bool)  # in blocks, each with rows of its own
    first = _first_seen(given.visible, new, seq)
    if first is None:
        return np.zeros(seq, bool) if seq < new else None
    return _told_by(first, given)


def _ends_in_text(given: GivenRows) -> bool:
    """Whether the tokens are the last rows, each after the other, and those before go on to them.

    An image before a text is such: it sees nothing of the text, and the text sees all of it.
    """
    seq, front = given.keys.shape[2], given.new - given.tokens
    first = _first_seen(given.visible, given.new, seq)
    if front < 0 or first is None or given.visible is None:
        return False
    table = given.visible.detach()[..., :seq].flatten(0, -3).all(0).cpu().numpy()
    return bool(
        np.array_equal(first[front:], np.arange(front, seq))
        and np.array_equal(table[front:], np.tri(seq, dtype=bool)[front:])
    )


def _told_by(first: Numbers, given: GivenRows) -> Flags | None:
    """The same, by the first query that sees each row."""
    seq, new = len(first), given.new
    for start in np.flatnonzero(first[: max(0, seq - new)] == 0).tolist():
        if np.array_equal(first[start : start + new], np.arange(new)):
            return np.arange(seq) < start + new
    if seq > new:
        return None if given.resumed or given.start else _behind(first, new)
    newest = np.array_equal(np.sort(first), np.arange(new - seq, new))
    return None if newest else np.zeros(seq, bool)


def _behind(first: Numbers, new: int) -> Flags | None:
    """Tokens behind rows that all see, where there was no text before: those were learned."""
    front = len(first) - new
    learned = np.array_equal(first[front:], np.arange(new)) and not first[:front].any()
    return np.arange(len(first)) >= front if learned else None


def summaries(text: Text, b: int, fresh: Numbers, new: int, own: Flags | None) -> Numbers:
    """Of the new rows of a sequence, those that stand for no single token.

    Args:
        text: As it is now; known rows have their positions.
        b: The sequence.
        fresh: Slots of its new rows, ascending.
        new: Query rows.
        own: Which rows are those of tokens, where the text begins.
    """
    if own is not None:
        return fresh[~own[fresh]]
    seq = text.cells.shape[1]
    known = text.live[b]
    known[fresh] = False
    if not known.any():
        return fresh[:0]
    left = np.maximum.accumulate(np.where(known, np.arange(seq), -1))
    left = np.where(left < 0, int(known.argmax()), left)
    tokens = fresh[~for_none(text.positions[b, left[fresh]])][:new]
    return np.setdiff1d(fresh, tokens)


def number(positions: Numbers, rows: Numbers) -> None:
    """Number rows that stand for no single token, after those there are.

    Args:
        positions: Of all rows of a sequence; changed.
        rows: Slots of the new ones.
    """
    others = np.delete(positions, rows)
    there = others[for_none(others)]
    first = int(there.max()) + 1 if len(there) else NO_TOKEN
    positions[rows] = first + np.arange(len(rows))


def _first_seen(visible: Tensor | None, new: int, seq: int) -> Numbers | None:
    """The first query that sees each row, [seq]; `new` where none does; None: no mask says it."""
    if visible is None or visible.shape[-2] != new or visible.shape[-1] < seq:
        return None
    table = visible.detach()[..., :seq].flatten(0, -3).any(0).cpu().numpy()
    return np.where(table.any(0), table.argmax(0), new)
