"""Which of the rows that a site is given now were given to it before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from kvtrace.record.flow.rows.joined import joined
from kvtrace.record.flow.rows.slots import NOWHERE, UNWRITTEN, Flags, Numbers, equal_slots, paired
from kvtrace.record.flow.rows.texts import GivenRows, Match, Text, lengths
from kvtrace.record.match import Digests, digest

ROUNDING = 0.03
"""By how much of its length a key is off that was rounded, to 4 bits say."""
Glance = Digests
"""Digests of keys and values, [2, sequences, seq]."""


def find(
    texts: Sequence[Text], now: Glance, part: int | None, given: GivenRows, seen: Flags
) -> Match:
    """The remembered text that these rows go on with, and where its rows are now.

    The newest one that explains all rows but the step's own, else the one that explains most;
    several together where each explains all rows of some sequences.

    Args:
        texts: Remembered, the newest last.
        now: Digests of the rows, of a part of them where one is given.
        part: It.
        given: What the site was given.
        seen: Slots that some query sees, [seq].
    """
    _, sequences, seq = now.shape
    best, most = None, 0
    for text in reversed(texts):
        score = _likeness(now, text.looked_at(part), text, seen)
        if score > most:
            best, most = text, score
        if most >= sequences * max(1, int(seen.sum()) - given.new):
            break
    own = sequences * given.new
    if best is not None and most > sequences * int(seen.sum()) - own and not given.again:
        best = _left_alone(texts, now, part, sequences * int(seen.sum()) - own) or best
    if best is not None and most < sequences * (seq - given.new):
        together = joined(texts, now, part, given.new, seen)
        # a batch that decodes already has rows that the prompts it was joined of had not
        larger = best is None or len(best.live) < sequences
        if together and (
            larger or _likeness(now, together.looked_at(part), together, seen) >= most
        ):
            best = together
    if best is None and texts and _all_there(now, texts[-1], part):
        best = texts[-1]
    if best is None:
        return unknown(sequences, seq)
    if best is not texts[-1] and _rounded(texts[-1], best, given):
        best = texts[-1]
    return _matched(now, best.looked_at(part), best, given.new)


def _left_alone(texts: Sequence[Text], now: Glance, part: int | None, old: int) -> Text | None:
    """The text that all rows but the step's own are, where a twin of it has rows like those too.

    Of texts that run side by side and say the same, each goes on with its own.

    Args:
        texts: Remembered, the newest last.
        now: Digests of the rows.
        part: Of what part of them.
        old: Rows of all sequences but the step's own.
    """
    for text in reversed(texts):
        live = text.live
        if old and int(live.sum()) == old and live.shape[0] == now.shape[1]:
            equal = equal_slots(now, text.looked_at(part))
            if int((equal & live[:, : equal.shape[1]]).sum()) == old:
                return text
    return None


def _rounded(newest: Text, best: Text, given: GivenRows) -> bool:
    """Whether the text just left goes on, its rows rounded, and one that was read before doesn't.

    Of a text that is read again, rows that were rounded then are those that are rounded now, and
    none is one of those that it has just been computed with. Their keys are as long as those.
    """
    old = newest.live.shape[1]
    if newest.number != given.number - 1 or len(newest.live) != given.keys.shape[0]:
        return False
    if not _fits(newest, given) or _fits(best, given):
        return False
    off = np.abs(lengths(given.keys[:, :, :old]) - newest.lengths)
    return bool(np.median(off) <= ROUNDING * np.median(newest.lengths))


def _fits(text: Text, given: GivenRows) -> bool:
    """Whether there are just as many rows as a text had, and those of the step's tokens."""
    return bool(given.keys.shape[2] == text.live.shape[1] + given.new)


def unknown(sequences: int, seq: int) -> Match:
    """Rows of a new text: none of them is known."""
    return Match(
        None,
        np.full((sequences, seq), NOWHERE),
        np.arange(sequences),
        np.zeros(seq, bool),
    )


def _likeness(now: Glance, then: Glance, text: Text, seen: Flags) -> int:
    """How many of the rows seen now are rows of the text."""
    live = text.live
    if now[0].shape[0] == live.shape[0]:
        equal = equal_slots(now, then)
        both = equal.shape[1]
        stayed = int((equal & live[:, :both] & seen[:both]).sum())
        if stayed >= 0.5 * min(live.sum(), seen.sum() * len(live)):
            return stayed
    keys, values = now[0][:, seen], now[1][:, seen]
    known = np.isin(keys * 3 + values, (then[0] * 3 + then[1])[live])
    alike = np.isin(values, then[1][live])
    return int(known.sum()) or int(alike.sum())


def _all_there(now: Glance, text: Text, part: int | None) -> bool:
    """Whether every row of a text stands where it stood, though nobody sees them."""
    live = text.live
    if now[0].shape[0] != live.shape[0] or now[0].shape[1] < live.shape[1]:
        return False
    return bool((equal_slots(now, text.looked_at(part)) | ~live).all())


def _matched(now: Glance, then: Glance, text: Text, new: int) -> Match:
    """Where the rows of a text are now."""
    sequences, seq = now[0].shape
    live = text.live
    origin, taken = np.full((sequences, seq), NOWHERE), np.zeros(sequences, np.int64)
    for b in range(sequences):
        mine = now[:, b]
        source = _source(mine, then, live, b)
        taken[b] = source
        stayed = equal_slots(mine, then[:, source])
        origin[b, : len(stayed)][stayed] = np.flatnonzero(stayed)
        free = live[source].copy()
        free[: len(stayed)] &= ~stayed
        moved = paired(
            mine[0] * 3 + mine[1],
            then[0][source] * 3 + then[1][source],
            origin[b] == NOWHERE,
            free,
            new,
        )
        origin[b] = np.where(moved == NOWHERE, origin[b], moved)
    both = min(seq, live.shape[1])
    changed = np.zeros(seq, bool)
    changed[:both] = (origin[:, :both] != np.arange(both)).any(0)
    return Match(text, origin, taken, changed)


def _source(mine: Glance, then: Glance, live: Flags, row: int) -> int:
    """The sequence that a row of the batch goes on with, itself where others fit no better.

    Keys may say another one than values: who reorders or drops sequences may forget one of both.
    What was moved was meant to be.

    Args:
        mine: Of the row, [2, seq].
        then: Of the step before, [2, sequences, slots].
        live: Slots that held rows, [sequences, slots].
        row: Which it is.
    """
    seq = mine.shape[-1]

    def best(tensors: slice) -> tuple[int, int]:
        """The sequence of which most rows are there, and how many."""
        counts = [
            int((equal_slots(mine[tensors], then[tensors, s]) & live[s, :seq]).sum())
            for s in range(len(live))
        ]
        most = max(counts)
        return (row if row < len(counts) and counts[row] == most else counts.index(most)), most

    source, known = best(slice(None))
    if len(live) == 1 or known >= live[source, :seq].sum():
        return source
    alone = (best(slice(1)), best(slice(1, 2)))
    moved = [(one, count) for one, count in alone if one != row and count > known]
    if moved and row < len(live):
        # values of equal tokens are equal anywhere: a ring's rows may all be its own, elsewhere
        own = _anywhere(mine, then[:, row, live[row]])
        moved = [(one, count) for one, count in moved if count > own]
        source = row if own > known else source
    return moved[0][0] if moved else source


def _anywhere(mine: Glance, then: Glance) -> int:
    """How many rows are among those of a sequence, in whichever slots.

    Args:
        mine: Digests of keys and values, [2, seq].
        then: Of the sequence's, [2, slots].
    """
    return int(np.isin(mine[0] * 3 + mine[1], then[0] * 3 + then[1]).sum())


def gone_on(texts: Sequence[Text], given: GivenRows) -> Match:
    """The text just left, where all says that it goes on though no row of it is recognised.

    A cache whose rows change (rounded, scaled, swapped, lost) is still a cache: the position that
    the model was told says so, or that there are just as many rows more as tokens came in, or that
    a single token was given with what the step before had filled.
    """
    sequences, seq = given.keys.shape[0], given.keys.shape[2]
    text = texts[-1] if texts else None
    none = unknown(sequences, seq)
    if text is None or text.number != given.number - 1 or len(text.live) != sequences:
        return none
    if given.start is not None:
        follows = given.start > 0 and bool((text.ends == given.start).all())
    else:
        resumed = given.resumed and given.new == 1
        follows = text.count > 0 and (_fits(text, given) or resumed)
    return Match(text, none.origin, none.taken, none.changed) if follows else none


def without_chance(match: Match, given: GivenRows, seen: Flags, *, computed: bool) -> Match:
    """The match, but for rows of the step's own tokens that equal earlier ones by chance.

    Rows of a first layer hold a token and its position, or not even that. After some were taken
    away, those of a prompt that follows may equal some of them. Where all rows before the step's
    own are known, its own are the last ones, if any of these is new.
    """
    own = given.new
    known = match.origin != NOWHERE
    if computed or match.text is None or not 1 < own < len(seen) or not seen.all():
        return match
    if not known[:, :-own].all() or known[:, -own:].all() or not known[:, -own:].any():
        return match
    origin, changed = match.origin.copy(), match.changed.copy()
    origin[:, -own:] = NOWHERE
    changed[-own:] = np.arange(len(seen))[-own:] < match.text.live.shape[1]
    return replace(match, origin=origin, changed=changed)


def repeated(match: Match, given: GivenRows) -> Match:
    """The match, but for the own rows of a step that repeats the one before: they equal its."""
    text, known = match.text, match.origin != NOWHERE
    if not given.again or text is None or text.number != given.number - 1 or not known.all():
        return match
    own = np.argsort(cells_before(match), axis=1)[:, -given.new :]
    origin, changed = match.origin.copy(), match.changed.copy()
    np.put_along_axis(origin, own, NOWHERE, 1)
    changed[np.unique(own)] = True
    return replace(match, origin=origin, changed=changed)


def is_new(match: Match, given: GivenRows, seen: Flags, *, computed: bool) -> bool:
    """Whether a new text begins, though some of its rows are where an old one's were.

    A step that sees no more rows than it has tokens has read nothing. It goes on with a text if it
    repeats its tokens, or if the old rows are all in place and only hidden from it: then its own
    are all that is seen besides, or all that there is besides, should they be hidden too.
    """
    text = match.text
    assert text is not None
    cells = cells_before(match)
    known = (cells != UNWRITTEN).any(0)
    if not computed:
        return not bool((known & seen).any()) and not _same_values(match, given, seen)
    if given.grown:
        return False
    reach = min(len(seen), text.cells.shape[1])
    old = np.any(text.live[:, :reach], axis=0)
    in_place = bool((known[:reach] | ~old).all()) and len(seen) > given.new
    fresh = int((seen & ~known).sum()), int((match.origin == NOWHERE).any(0).sum())
    return not (in_place and given.new in fresh)


def _same_values(match: Match, given: GivenRows, seen: Flags) -> bool:
    """Whether values are known though their keys are not: rotated anew, all of them."""
    text = match.text
    assert text is not None
    now = digest(given.values)
    return bool(np.isin(text.values[text.live], now[:, seen]).any())


def live_slots(match: Match, given: GivenRows, seen: Flags) -> Flags:
    """Slots that hold rows: all, unless there are more than can have been written."""
    seq, behind = len(seen), _left_behind(match, given, seen)
    known = 0 if match.text is None else match.text.count
    if seq <= known + given.new or bool(seen.all()) or not bool(seen.any()):
        return ~behind
    cells = cells_before(match)
    found: Flags = seen | (cells != UNWRITTEN).any(0) | match.changed
    return found & ~behind


def _left_behind(match: Match, given: GivenRows, seen: Flags) -> Flags:
    """Hidden rows of tokens that a caller gave up who goes on from an earlier position, [seq].

    A buffer holds them until they are written over: all that is seen ends just before them.
    """
    text, start = match.text, given.start
    if text is None or start is None or start >= text.ends.min():
        return np.zeros(len(seen), bool)
    known = cells_before(match) != UNWRITTEN
    places = np.where(known, text.positions[match.taken[:, None], match.origin], -1)
    goes_on = places[:, seen].max(initial=-1) + 1 == start
    behind: Flags = ~seen & (places >= start).any(0) & goes_on
    return behind


def cells_before(match: Match) -> Numbers:
    """The cell of each row that is known."""
    if match.text is None:
        return np.full(match.origin.shape, UNWRITTEN)
    cells = match.text.cells[match.taken[:, None], match.origin]
    return np.where(match.origin == NOWHERE, UNWRITTEN, cells)
