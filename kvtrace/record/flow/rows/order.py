"""Where rows stand in their text: the position of every row, new ones and rotated ones too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.record.flow.rows import slots as where
from kvtrace.record.flow.rows import standing
from kvtrace.record.flow.rows.slots import NOWHERE, Flags, Numbers
from kvtrace.record.flow.rows.texts import GivenRows, Match, Text

ROTATED = 1e-3
"""Relative change of a key's length that rounding explains."""


def give_places(
    match: Match, given: GivenRows, text: Text, written: Numbers, *, computed: bool
) -> tuple[int, bool, Numbers]:
    """Give every row its position.

    Args:
        match: Which rows are known.
        given: What the site was given.
        text: As it is now; its positions are filled in.
        written: Slots of new rows, [sequences, rows].
        computed: The step read nothing.

    Returns:
        Rows written again per sequence, whether those were rotated, and the position of the
        first token, [sequences].
    """
    before, new = match.text, given.new
    begins = before is None or computed
    at = _starts(given, text, begins=begins)
    own = standing.of_tokens(given, computed=computed) if begins else None
    if own is not None and not (text.live & ~own).any():
        own = None  # slots of a buffer that nobody has written
    joined = before is not None and before.padded
    text.mixed = own is not None or (before is not None and not begins and before.mixed)
    grew = _grew(match, text, new)
    again, rotated = 0, True
    for b, slots in enumerate(written):
        old, turned = _go_on(match, text, b, slots, new, computed=computed, grew=grew)
        again, rotated = max(again, int(old.sum())), rotated and turned
        fresh = slots[~old]
        if begins:  # an earlier text may have been told otherwise
            text.positions[b][standing.for_none(text.positions[b])] = 0
        if text.mixed:
            rows = fresh if own is None else np.flatnonzero(text.live[b])
            others = standing.summaries(text, b, rows, new, own)
            standing.number(text.positions[b], others)
            fresh = np.setdiff1d(fresh, others)
        if before is not None and joined:
            # nobody sees padding: it stands before the text, wherever its slots are
            padding = fresh[fresh < before.cells.shape[1]]
            text.positions[b, padding] = -1 - padding
            fresh = np.setdiff1d(fresh, padding)
        start = int(at[b])
        at[b] = _place(match, text, b, fresh, given, start, computed=computed)
    behind = None if begins else _behind(match, given, written)
    if behind is not None:
        at[:], places = behind, behind[:, None] + np.arange(new)
        np.put_along_axis(text.positions, places, places, 1)
        filling = (np.arange(text.cells.shape[1]) > places[:, -1:]) & joined
        text.positions[filling] = -1 - np.nonzero(filling)[1]
    text.ends[:], text.new = at + new, new
    return again, rotated and again > 0 and not joined, at


def _grew(match: Match, text: Text, new: int) -> bool:
    """Whether the array is longer than before by the step's tokens."""
    before = match.text
    return before is not None and text.cells.shape[1] - before.cells.shape[1] == new


def _starts(given: GivenRows, text: Text, *, begins: bool) -> Numbers:
    """Where each text begins, by what is told and by padding at its left, [sequences]."""
    sequences, seq = text.cells.shape
    at = np.full(sequences, given.start or 0)
    if begins:
        told = given.pads is not None and len(given.pads) == sequences
        at -= np.array(given.pads) if told else where.padding(given.visible, sequences, seq)
    return at


def _go_on(
    match: Match, text: Text, b: int, slots: Numbers, new: int, *, computed: bool, grew: bool
) -> tuple[Flags, bool]:
    """Give rows that were written once more the positions that they had.

    Args:
        match: Which rows are known.
        text: As it is now.
        b: The sequence.
        slots: Of its new rows, [rows].
        new: Tokens of the step.
        computed: It read nothing.
        grew: The array is longer than before by the step's tokens.

    Returns:
        Which of them those are, [rows], and whether they differ by a rotation at most.
    """
    # as many as the step's tokens are theirs, though values of earlier tokens may be equal
    if not computed and len(slots) <= new:
        return np.zeros(len(slots), bool), True
    twins = _twins(match, text, b, slots, new)
    # written once more beside other sequences that changed
    twins = np.where(twins < 0, match.origin[b, slots], twins)
    if grew:  # made anew from what is kept of them, in another order of sums
        twins = np.where((twins < 0) & _rounded(match, text, b)[slots], slots, twins)
    old = twins >= 0
    if match.text is None or not old.any():
        return old, True
    was, now = (int(match.taken[b]), twins[old]), (b, slots[old])
    text.positions[now] = match.text.positions[was]
    as_long = _as_long(match.text.lengths[was], text.lengths[now])
    return old, as_long and np.array_equal(match.text.values[was], text.values[now])


def _twins(match: Match, text: Text, b: int, written: Numbers, new: int) -> Numbers:
    """For each written row the old slot of a row with its values or key, which is gone; or -1."""
    none = np.full(len(written), NOWHERE)
    before = match.text
    if before is None or not len(written):
        return none
    source = int(match.taken[b])
    free = before.live[source].copy()
    stayed = match.origin[b][match.origin[b] != NOWHERE]
    free[stayed] = False
    if not free.any():
        return none
    count = min(text.cells.shape[1], len(free))
    inside = written[written < count]
    equal = before.values[source, inside] == text.values[b, inside]
    keys = text.keys[b, inside]  # in place, they tell as much where values were mixed up
    equal |= (before.keys[source, inside] == keys) & (keys != 0)
    same = inside[free[inside] & equal]
    wanted = np.zeros(text.cells.shape[1], bool)
    wanted[written] = True
    moved = where.paired(text.values[b], before.values[source], wanted, free, new)
    found = moved[written]
    if len(same) >= (found != NOWHERE).sum():
        wanted[same], free[same] = False, False
        found = where.paired(text.values[b], before.values[source], wanted, free, new)[written]
        found[np.isin(written, same)] = written[np.isin(written, same)]
    return found


def _rounded(match: Match, text: Text, b: int) -> Flags:
    """Slots whose rows may be those that stood there, but for rounding, [seq]."""
    found = np.zeros(text.cells.shape[1], bool)
    if match.text is not None:
        was = int(match.taken[b])
        count = min(len(found), match.text.cells.shape[1])
        before, now = match.text.lengths[was, :count], text.lengths[b, :count]
        there = match.text.live[was, :count] & (match.origin[b, :count] == NOWHERE)
        found[:count] = there & _alike(before, now)
    return found


def _as_long(before: NDArray[np.float32], now: NDArray[np.float32]) -> bool:
    """Whether keys kept their lengths, as a rotation does."""
    return bool(_alike(before, now).all())


def _alike(before: NDArray[np.float32], now: NDArray[np.float32]) -> Flags:
    """Lengths that are equal but for rounding."""
    same: Flags = np.abs(before - now) <= ROTATED * np.maximum(np.maximum(before, now), 1e-9)
    return same


def _place(
    match: Match,
    text: Text,
    b: int,
    fresh: Numbers,
    given: GivenRows,
    start: int,
    *,
    computed: bool,
) -> int:
    """Give the new rows of a sequence their positions; the one of the step's first token.

    Args:
        match: Which rows are known.
        text: As it is now.
        b: The sequence.
        fresh: Slots of rows that stand for no token seen before.
        given: What the site was given.
        start: Where a new text begins.
        computed: Nothing was read: rows are tokens, in order.
    """
    positions, live = text.positions[b], text.live[b]
    slots, new = np.flatnonzero(live & ~standing.for_none(positions)), given.new
    end = None if match.text is None else int(match.text.ends[match.taken[b]])
    known = np.setdiff1d(slots, fresh)
    if computed:
        first = start + (max(0, new - len(slots)) if len(slots) else 0)
        positions[slots] = first + np.arange(len(slots))
        return first
    if end is None or not len(known):
        first = max(start, len(fresh) - new) if end is None else end
        positions[fresh] = first - (len(fresh) - new) + np.arange(len(fresh))
        return first
    last = int(known[positions[known].argmax()])
    grew = _grew(match, text, new)
    order = where.in_turn(fresh, last)
    other = (text.keys[b] == 0) & (text.values[b] == 0) | ~_shown_last(given, b)
    added = order[(order >= len(live) - new) & ~other[order]]
    # of an array that grew, what came to its end is the tokens'; the rest was changed in place
    tokens = added if grew and len(added) == new else where.given_tokens(order, new, other)
    first = end
    # rows of tokens that were taken off are known; an array that grew by the step's lost none
    if not (grew and len(added) == new) and _cropped(match, text, given, known, b):
        first = int(positions[last]) + 1 - max(0, new - len(tokens))
    others = np.setdiff1d(fresh, tokens)
    positions[others] = others
    positions[tokens] = first + max(0, new - len(tokens)) + np.arange(len(tokens))
    return first


def _behind(match: Match, given: GivenRows, written: Numbers) -> Numbers | None:
    """Where the step's rows stand in each sequence, where some are shorter than the others.

    A batch that was filled at the right goes on behind each of its texts: the filling is written
    over. Either the model was told how many rows each has, and some were written there; or all
    were, no query sees what lies behind them, and some sequence was not filled.
    """
    sequences, _, seq, _ = given.keys.shape
    if match.text is None or given.visible is None or sequences < 2:
        return None
    last = match.text.ends[match.taken]
    if given.held is not None:
        told = np.array(given.held)
        ways = [(_agree(one, given.new, written), one) for one in (told, told - given.new)]
        agree, first = max(ways, key=lambda way: way[0])
        slots_are_places = bool((first + given.new <= seq).all())  # not those of a window
        if not agree or not slots_are_places or _counts_shown(given, first, last):
            return None
        return first if _fits(first, last, match.text.new) else None
    if given.visible.shape[0] != sequences:
        return None
    shown = np.stack([_shown_last(given, b) for b in range(sequences)])
    counts = shown.sum(1)
    first = counts - given.new
    alone = np.array_equal(shown, np.arange(seq) < counts[:, None]) and bool((first == last).any())
    all_written = _agree(first, given.new, written) == sequences
    return first if alone and all_written and _fits(first, last, match.text.new) else None


def _counts_shown(given: GivenRows, first: Numbers, last: Numbers) -> bool:
    """Whether positions count what is shown: all end alike, and are filled at the left."""
    hidden = [int(_shown_last(given, b).argmax()) for b in range(len(last))]
    return any(hidden) and np.array_equal(hidden, last - first)


def _shown_last(given: GivenRows, b: int) -> Flags:
    """Slots that the last query of a sequence sees, its own among them, [seq]."""
    seq = given.keys.shape[2]
    if given.visible is None or not given.visible.shape[-2]:
        return np.ones(seq, bool)
    table = given.visible[b if given.visible.shape[0] > 1 else 0, :, -1]
    found: Flags = table.any(0).expand(seq).cpu().numpy()
    return found


def _agree(first: Numbers, new: int, written: Numbers) -> int:
    """Sequences that wrote rows where they are said to go on."""
    own = first[:, None] + np.arange(new)
    return sum(bool(np.isin(*pair).all()) for pair in zip(own, written, strict=True))


def _fits(first: Numbers, ends: Numbers, filled: int) -> bool:
    """Whether these are other places, and no sequence loses all that the step before gave it."""
    taken = ends - first
    return len(set(first.tolist())) > 1 and bool((taken >= 0).all() and (taken < filled).all())


def _cropped(match: Match, text: Text, given: GivenRows, known: Numbers, b: int) -> bool:
    """Whether somebody took rows off the end, rather than the model losing one.

    The caller says so by an earlier position, or, where no position is told, by rows that are
    simply not there any more. A slot that was written over says nothing, and where rows between
    others went too, a cache chose what to drop.
    """
    if match.text is None:
        return False
    was, places = int(match.taken[b]), text.positions[b, known]
    end = int(match.text.ends[was])
    if places.max() + 1 >= end:
        return False
    if given.start is not None:
        return given.start < end
    before = match.text.positions[was, match.text.live[was]]
    between = (before > places.min()) & (before < places.max())
    return bool(text.live.all()) and bool(np.isin(before[between], places).all())
