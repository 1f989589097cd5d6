"""Cached rows over time: from the K,V that one site attended to at successive steps.

No cache is looked for. What a step attended to is compared with what the steps before did, slot by
slot first and then by content: rows are unchanged, new, changed, moved or gone. Only 64-bit
digests are kept between steps, and the lengths of keys, by which a rotation is recognised. Long
rows are looked at in turns: an eighth of their features at each step, every row at every step.
Knows no cache class, no trace and no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.flow import slots as where
from kvtrace.record.flow.slots import NOWHERE, UNWRITTEN, Flags, Numbers
from kvtrace.record.match import PARTS, Digests, digest

WHOLE = 1 << 14
"""Numbers of K that are looked at whole in each step; longer caches in turns."""
LONG = 16
"""Features per head from which a row is long enough to be looked at in turns."""
MAX_TEXTS = 4
"""Texts whose rows are remembered; a text that was left for others can be gone on with."""
ROTATED = 1e-3
"""Relative change of a key's length that rounding explains."""


@dataclass(frozen=True, slots=True, eq=False)
class RowStep:
    """What became of the rows in one step. Arrays are [sequences, seq] where nothing else is said.

    Cells are numbered from 0 in the order of writing, within a step sequence by sequence, then
    slot by slot; every sequence writes equally many.

    Attributes:
        cells: Cell of each slot; `UNWRITTEN` for slots nobody ever saw.
        positions: Place of each row in its text; only where there is a cell.
        slots: Slots that hold rows, ascending, the same in all sequences.
        first_cell: Number of the first cell written by this step.
        written: Slots written, ascending, [sequences, rows].
        origin: Slot each row stood in before, in the sequence it is taken from; else `NOWHERE`.
        taken: Sequence whose rows each sequence holds now, [sequences].
        at: Position of the first token of the step, [sequences].
        parent: Number of the step whose rows this one goes on with; None: a new text.
        before: Rows there were, of those most of any sequence.
        computed: All rows attended to were computed by this very step: nothing was read.
        new: Query rows per sequence.
        gone: Rows there were that are nowhere now, of those most of any sequence.
        cropped: Of them, rows that somebody had taken off the end.
        again: Written rows per sequence that stand for a token which had a row before.
        rotated: All of those kept their values, and their keys their lengths: they were rotated.
    """

    cells: Numbers
    positions: Numbers
    slots: Numbers
    first_cell: int
    written: Numbers
    origin: Numbers
    taken: Numbers
    at: Numbers
    parent: int | None
    before: int
    computed: bool
    new: int
    gone: int = 0
    cropped: int = 0
    again: int = 0
    rotated: bool = False

    @property
    def rows(self) -> int:
        """Cells written per sequence."""
        return int(self.written.shape[1])

    @property
    def whole(self) -> bool:
        """Whether every slot holds a row."""
        return len(self.slots) == int(self.cells.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a site was given in one step.

    Attributes:
        keys, values: [sequences, kv_heads, seq, dim].
        new: Query rows per sequence.
        visible: Broadcasts to [sequences, heads, new, seq]; None: every row is seen.
        grown: The tokens of this step are those of the one before and more.
        start: Position of the first token, where the model was told.
        pads: Hidden tokens at the left per sequence, where the model was told.
        number: Of the step.
    """

    keys: Tensor
    values: Tensor
    new: int
    visible: Tensor | None = None
    grown: bool = False
    start: int | None = None
    pads: tuple[int, ...] | None = None
    number: int = 0


@dataclass(slots=True, eq=False)
class _Text:
    """A text as the site attended to it last; [sequences, slots], parts [PARTS, …]."""

    keys: Digests
    values: Digests
    key_parts: Digests | None
    value_parts: Digests | None
    lengths: NDArray[np.float32]
    cells: Numbers
    positions: Numbers
    ends: Numbers
    number: int

    @property
    def live(self) -> Flags:
        found: Flags = self.cells != UNWRITTEN
        return found

    @property
    def count(self) -> int:
        """Rows of the longest sequence."""
        return int(self.live.sum(1).max(initial=0))

    def looked_at(self, part: int | None) -> tuple[Digests, Digests]:
        """Digests of the keys and values, whole or of a part."""
        if part is None or self.key_parts is None or self.value_parts is None:
            return self.keys, self.values
        return self.key_parts[part], self.value_parts[part]


@dataclass(frozen=True, slots=True, eq=False)
class _Match:
    """Which rows are known; the text they are of, and what it looks like to the same glance."""

    text: _Text | None
    origin: Numbers
    taken: Numbers
    changed: Flags


@dataclass(slots=True)
class RowFollower:
    """Follows the rows of one site through the steps of its texts."""

    next_cell: int = 0
    _texts: list[_Text] = field(default_factory=list)
    _looks: int = 0

    def step(self, given: Given) -> RowStep:
        """Compare a step with those before."""
        keys = given.keys
        sequences, _, seq, _ = keys.shape
        part = self._part(given)
        glance = digest(keys, part), digest(given.values, part)
        seen = where.seen(given.visible, seq)
        match = self._match(glance, part, given, seen)
        computed = int(seen.sum()) <= given.new
        if match.text is not None and _is_new(match, given, seen, computed=computed):
            match = _unknown(sequences, seq)
        computed = computed and (match.text is None or given.grown)
        live = _live(match, given, seen)
        text = self._text(match, given, glance if part is None else None)
        cells = _cells_before(match)
        missing = (cells == UNWRITTEN) & live
        written = where.equally_many(missing, (cells != UNWRITTEN) & live)
        first = self.next_cell
        self.next_cell += written.size
        np.put_along_axis(cells, written, first + np.arange(written.size).reshape(written.shape), 1)
        cells[:, np.flatnonzero(~live)] = UNWRITTEN
        text.cells = cells
        kept = ((match.origin != NOWHERE) & (_cells_before(match) != UNWRITTEN)).sum(1)
        again, rotated, at = self._places(match, given, text, written, computed=computed)
        before = match.text
        self._remember(text, before)
        return RowStep(
            cells,
            text.positions,
            np.flatnonzero(live),
            first,
            written,
            match.origin,
            match.taken,
            at,
            None if before is None else before.number,
            0 if before is None else before.count,
            computed,
            given.new,
            0 if before is None else max(0, before.count - int(kept.min()) - again),
            0 if before is None else max(0, int((before.ends[match.taken] - at).max())),
            again,
            rotated,
        )

    @property
    def digests(self) -> tuple[Digests, Digests]:
        """Of the keys and values of the last step."""
        return self._texts[-1].keys, self._texts[-1].values

    def _part(self, given: Given) -> int | None:
        """The part of each row that is looked at this time; None: all of it."""
        self._looks += 1
        whole = given.keys.numel() <= WHOLE or not _in_turns(given.keys, given.values)
        return None if whole else self._looks % PARTS

    # -- which text goes on ----------------------------------------------------------------

    def _match(
        self, glance: tuple[Digests, Digests], part: int | None, given: Given, seen: Flags
    ) -> _Match:
        """The remembered text that these rows go on with, and where its rows are now.

        The newest one that explains all rows but the step's own, else the one that explains most.
        """
        sequences, seq = glance[0].shape
        best, most = None, 0
        for text in reversed(self._texts):
            score = _likeness(glance, text.looked_at(part), text, seen)
            if score > most:
                best, most = text, score
            if most >= sequences * max(1, int(seen.sum()) - given.new):
                break
        if best is None and self._texts and _all_there(glance, self._texts[-1], part):
            best = self._texts[-1]
        if best is None:
            return _unknown(sequences, seq)
        return _matched(glance, best.looked_at(part), best, given.new)

    def _remember(self, text: _Text, before: _Text | None) -> None:
        if before is not None:
            self._texts = [one for one in self._texts if one is not before]
        self._texts = [*self._texts[1 - MAX_TEXTS :], text]

    # -- what is remembered ----------------------------------------------------------------

    def _text(self, match: _Match, given: Given, glance: tuple[Digests, Digests] | None) -> _Text:
        """Digests of all slots: old ones as far as they are known, the others calculated."""
        sequences, _, seq, _ = given.keys.shape
        turns = _in_turns(given.keys, given.values)
        shape = (sequences, seq)
        text = _Text(
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros((PARTS, *shape), np.int64) if turns else None,
            np.zeros((PARTS, *shape), np.int64) if turns else None,
            np.zeros(shape, np.float32),
            np.full(shape, UNWRITTEN),
            np.zeros(shape, np.int64),
            np.zeros(sequences, np.int64),
            given.number,
        )
        if match.text is not None:
            _take_over(text, match.text, match)
        unknown = match.origin == NOWHERE
        columns = np.flatnonzero(unknown.any(0))
        if len(columns):
            _calculate(text, given, columns, unknown)
        if glance is not None:
            text.keys, text.values = glance
        return text

    # -- where rows stand in the text ------------------------------------------------------

    def _places(
        self, match: _Match, given: Given, text: _Text, written: Numbers, *, computed: bool
    ) -> tuple[int, bool, Numbers]:
        """Give every row its position.

        Returns:
            Rows written again per sequence, whether those were rotated, and the position of the
            first token, [sequences].
        """
        sequences, seq = text.cells.shape
        at = np.full(sequences, given.start or 0)
        if match.text is None:
            told = given.pads is not None and len(given.pads) == sequences
            at -= np.array(given.pads) if told else where.padding(given.visible, sequences, seq)
        again, rotated = 0, True
        for b in range(sequences):
            twins = _twins(match, text, b, written[b], given.new)
            old = twins >= 0
            if old.any() and match.text is not None:
                source = int(match.taken[b])
                text.positions[b, written[b][old]] = match.text.positions[source, twins[old]]
                lengths = match.text.lengths[source, twins[old]], text.lengths[b, written[b][old]]
                rotated &= _as_long(*lengths)
                again = max(again, int(old.sum()))
            end = None if match.text is None else int(match.text.ends[match.taken[b]])
            at[b] = _place(text, b, written[b][~old], given, (int(at[b]), end), computed=computed)
        text.ends[:] = at + given.new
        return again, rotated and again > 0, at


def _in_turns(keys: Tensor, values: Tensor) -> bool:
    return min(keys.shape[3], values.shape[3]) >= LONG


def _unknown(sequences: int, seq: int) -> _Match:
    return _Match(
        None,
        np.full((sequences, seq), NOWHERE),
        np.arange(sequences),
        np.zeros(seq, bool),
    )


def _likeness(
    now: tuple[Digests, Digests], then: tuple[Digests, Digests], text: _Text, seen: Flags
) -> int:
    """How many of the rows seen now are rows of the text."""
    live = text.live
    if now[0].shape[0] == live.shape[0]:
        equal = where.equal_slots(now, then)
        both = equal.shape[1]
        stayed = int((equal & live[:, :both] & seen[:both]).sum())
        if stayed >= 0.5 * min(live.sum(), seen.sum() * len(live)):
            return stayed
    keys, values = now[0][:, seen], now[1][:, seen]
    known = np.isin(keys * 3 + values, (then[0] * 3 + then[1])[live])
    alike = np.isin(values, then[1][live])
    return int(known.sum()) or int(alike.sum())


def _all_there(now: tuple[Digests, Digests], text: _Text, part: int | None) -> bool:
    """Whether every row of a text stands where it stood, though nobody sees them."""
    live = text.live
    if now[0].shape[0] != live.shape[0] or now[0].shape[1] < live.shape[1]:
        return False
    return bool((where.equal_slots(now, text.looked_at(part)) | ~live).all())


def _matched(
    now: tuple[Digests, Digests], then: tuple[Digests, Digests], text: _Text, new: int
) -> _Match:
    """Where the rows of a text are now."""
    sequences, seq = now[0].shape
    live = text.live
    origin, taken = np.full((sequences, seq), NOWHERE), np.zeros(sequences, np.int64)
    for b in range(sequences):
        mine = now[0][b], now[1][b]
        counts = [
            int((where.equal_slots(mine, (then[0][s], then[1][s])) & live[s, :seq]).sum())
            for s in range(len(live))
        ]
        source = b if b < len(counts) and counts[b] == max(counts) else counts.index(max(counts))
        taken[b] = source
        stayed = where.equal_slots(mine, (then[0][source], then[1][source]))
        origin[b, : len(stayed)][stayed] = np.flatnonzero(stayed)
        free = live[source].copy()
        free[: len(stayed)] &= ~stayed
        moved = where.paired(
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
    return _Match(text, origin, taken, changed)


def _is_new(match: _Match, given: Given, seen: Flags, *, computed: bool) -> bool:
    """Whether a new text begins, though some of its rows are where an old one's were.

    A step that sees no more rows than it has tokens has read nothing. It goes on with a text if it
    repeats its tokens, or if the old rows are all in place and only hidden from it.
    """
    text = match.text
    assert text is not None
    cells = _cells_before(match)
    known = (cells != UNWRITTEN).any(0)
    if not computed:
        return not bool((known & seen).any()) and not _same_values(match, given, seen)
    if given.grown:
        return False
    reach = min(len(seen), text.cells.shape[1])
    old = np.any(text.live[:, :reach], axis=0)
    in_place = bool((known[:reach] | ~old).all()) and len(seen) > given.new
    fresh = int((seen & ~known).sum())
    return not (in_place and fresh == given.new)


def _same_values(match: _Match, given: Given, seen: Flags) -> bool:
    """Whether values are known though their keys are not: rotated anew, all of them."""
    text = match.text
    assert text is not None
    now = digest(given.values)
    return bool(np.isin(text.values[text.live], now[:, seen]).any())


def _live(match: _Match, given: Given, seen: Flags) -> Flags:
    """Slots that hold rows: all, unless there are more than can have been written."""
    seq = len(seen)
    known = 0 if match.text is None else match.text.count
    if seq <= known + given.new or bool(seen.all()) or not bool(seen.any()):
        return np.ones(seq, bool)
    cells = _cells_before(match)
    found: Flags = seen | (cells != UNWRITTEN).any(0) | match.changed
    return found


def _cells_before(match: _Match) -> Numbers:
    """The cell of each row that is known."""
    if match.text is None:
        return np.full(match.origin.shape, UNWRITTEN)
    cells = match.text.cells[match.taken[:, None], match.origin]
    return np.where(match.origin == NOWHERE, UNWRITTEN, cells)


def _take_over(text: _Text, before: _Text, match: _Match) -> None:
    """Everything remembered of rows that are known."""
    rows = match.taken[:, None]
    known = match.origin != NOWHERE
    for name in ("keys", "values", "lengths", "positions"):
        getattr(text, name)[known] = getattr(before, name)[rows, match.origin][known]
    for name in ("key_parts", "value_parts"):
        mine, theirs = getattr(text, name), getattr(before, name)
        if mine is not None and theirs is not None:
            mine[:, known] = theirs[:, rows, match.origin][:, known]


def _calculate(text: _Text, given: Given, columns: Numbers, unknown: Flags) -> None:
    """Digests of some slots, where they are not known."""
    every = len(columns) == given.keys.shape[2]
    keys, values = (x if every else x[:, :, columns.tolist()] for x in (given.keys, given.values))
    wanted = unknown[:, columns]
    place = np.ix_(np.arange(len(unknown)), columns)

    def put(target: NDArray[np.generic], found: NDArray[np.generic]) -> None:
        target[place] = np.where(wanted, found, target[place])

    put(text.lengths, keys.detach().float().norm(dim=(1, 3)).cpu().numpy())
    for rows, whole, parts in (
        (keys, text.keys, text.key_parts),
        (values, text.values, text.value_parts),
    ):
        if parts is None:
            put(whole, digest(rows))
            continue
        each = [digest(rows, part) for part in range(PARTS)]
        for part, found in enumerate(each):
            put(parts[part], found)
        put(whole, np.sum(each, axis=0))


def _twins(match: _Match, text: _Text, b: int, written: Numbers, new: int) -> Numbers:
    """For each written row the old slot of a row with the same values, which is gone; or -1."""
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
    same = inside[free[inside] & (before.values[source, inside] == text.values[b, inside])]
    wanted = np.zeros(text.cells.shape[1], bool)
    wanted[written] = True
    moved = where.paired(text.values[b], before.values[source], wanted, free, new)
    found = moved[written]
    if len(same) >= (found != NOWHERE).sum():
        wanted[same], free[same] = False, False
        found = where.paired(text.values[b], before.values[source], wanted, free, new)[written]
        found[np.isin(written, same)] = written[np.isin(written, same)]
    return found


def _as_long(before: NDArray[np.float32], now: NDArray[np.float32]) -> bool:
    """Whether keys kept their lengths, as a rotation does."""
    return bool((np.abs(before - now) <= ROTATED * np.maximum(np.maximum(before, now), 1e-9)).all())


def _place(
    text: _Text,
    b: int,
    fresh: Numbers,
    given: Given,
    bounds: tuple[int, int | None],
    *,
    computed: bool,
) -> int:
    """Give the new rows of a sequence their positions; the one of the step's first token.

    Args:
        text: As it is now.
        b: The sequence.
        fresh: Slots of rows that stand for no token seen before.
        given: What the site was given.
        bounds: Where a new text begins, and where the text ended before; None: it is new.
        computed: Nothing was read: rows are tokens, in order.
    """
    positions, live = text.positions[b], text.live[b]
    slots, new = np.flatnonzero(live), given.new
    start, end = bounds
    known = np.setdiff1d(slots, fresh)
    if computed:
        first = start + max(0, new - len(slots))
        positions[slots] = first + np.arange(len(slots))
        return first
    if end is None or not len(known):
        first = max(start, len(fresh) - new) if end is None else end
        positions[fresh] = first - (len(fresh) - new) + np.arange(len(fresh))
        return first
    last = int(known[positions[known].argmax()])
    first = int(positions[last]) + 1 if _cropped(text, given, last, b, end) else end
    order = where.in_turn(fresh, last)
    empty = (text.keys[b] == 0) & (text.values[b] == 0)
    tokens = where.given_tokens(order, new, empty)
    others = np.setdiff1d(fresh, tokens)
    positions[others] = others
    positions[tokens] = first + max(0, new - len(tokens)) + np.arange(len(tokens))
    return first


def _cropped(text: _Text, given: Given, last: int, b: int, end: int) -> bool:
    """Whether somebody took rows off the end, rather than the model losing one.

    The caller says so by an earlier position, or, where no position is told, by rows that are
    simply not there any more. A slot that was written over says nothing.
    """
    kept = int(text.positions[b, last]) + 1
    if kept >= end:
        return False
    if given.start is not None:
        return given.start < end
    return bool(text.live.all())
