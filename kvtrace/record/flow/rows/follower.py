"""Cached rows over time: from the K,V that one site attended to at successive steps.

No cache is looked for. What a step attended to is compared with what the steps before did, slot by
slot first and then by content: rows are unchanged, new, changed, moved or gone. Only 64-bit
digests are kept between steps, and the lengths of keys, by which a rotation is recognised. Long
rows are looked at in turns: an eighth of their features at each step, every row at every step.
Knows no cache class, no trace and no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from kvtrace.record.flow.rows import slots as where
from kvtrace.record.flow.rows.known import (
    cells_before,
    find,
    gone_on,
    is_new,
    live_slots,
    repeated,
    unknown,
    without_chance,
)
from kvtrace.record.flow.rows.order import give_places
from kvtrace.record.flow.rows.row_step import RowStep, grown_step
from kvtrace.record.flow.rows.slots import NOWHERE, UNWRITTEN, Flags, Numbers
from kvtrace.record.flow.rows.texts import GivenRows, Match, Text, in_turns, longer, remembered
from kvtrace.record.match import PARTS, Digests, glance

WHOLE = 1 << 14
"""Numbers of K that are looked at whole in each step; longer caches in turns."""
MAX_TEXTS = 32
"""Texts whose rows are remembered; a text that was left for others can be gone on with."""


@dataclass(slots=True)
class RowFollower:
    """Follows the rows of one site through the steps of its texts.

    Attributes:
        next_cell: Number of the next cell that is written.
        looks: Steps that were compared so far: the turn of the parts of long rows.
    """

    next_cell: int = 0
    looks: int = 0
    _texts: list[Text] = field(default_factory=list)
    _makes_more: bool = False

    def step(self, given: GivenRows) -> RowStep:
        """Compare a step with those before."""
        part = self.next_part(given.keys, given.values)
        now = glance(given.keys, given.values, part)
        if self.grew(given, now, part):
            return self._longer(given)
        return self.compared(given, now, part)

    def compared(self, given: GivenRows, now: Digests, part: int | None) -> RowStep:
        """A step that may have done anything.

        Args:
            given: What the site was given.
            now: Digests of keys and values, [2, sequences, seq].
            part: Of what part of each row; None: of all of it.
        """
        seen = where.seen(given.visible, given.keys.shape[2])
        match, computed = self._recognised(given, now, part, seen)
        live = live_slots(match, given, seen)
        text = remembered(match, given, now if part is None else None)
        cells, written, first = self._numbered(match, live)
        text.cells = cells
        kept = ((match.origin != NOWHERE) & (cells_before(match) != UNWRITTEN)).sum(1)
        again, rotated, at = give_places(match, given, text, written, computed=computed)
        before = match.text
        cropped = 0 if before is None else max(0, int((before.ends[match.taken] - at).max()))
        self._remember(text, before, parted=cropped > 0)
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
            cropped,
            again,
            rotated,
            among=0 if before is None else len(before.ends),
        )

    def _recognised(
        self, given: GivenRows, now: Digests, part: int | None, seen: Flags
    ) -> tuple[Match, bool]:
        """The text that a step goes on with, and whether its own rows are all that it read."""
        sequences, _, seq, _ = given.keys.shape
        match = find(self._texts, now, part, given, seen)
        if not self._texts:  # a first step read from nowhere: some rows stand for several tokens
            self._makes_more = int(seen.sum()) > given.new > 1
        computed = int(seen.sum()) <= given.new or bool(self._makes_more and given.grown)
        if match.text is not None and is_new(match, given, seen, computed=computed):
            match = unknown(sequences, seq)
        if match.text is None:
            match = gone_on(self._texts, given)
        computed = computed and (match.text is None or given.grown)
        match = without_chance(repeated(match, given), given, seen, computed=computed)
        return match, computed

    def _numbered(self, match: Match, live: Flags) -> tuple[Numbers, Numbers, int]:
        """Cells of all slots, the slots written to, and the first of the cells written."""
        cells = cells_before(match)
        missing = (cells == UNWRITTEN) & live
        padded = match.text is not None and match.text.padded
        written = where.equally_many(missing, (cells != UNWRITTEN) & live, last=not padded)
        first = self.next_cell
        self.next_cell += written.size
        np.put_along_axis(cells, written, first + np.arange(written.size).reshape(written.shape), 1)
        cells[:, np.flatnonzero(~live)] = UNWRITTEN
        return cells, written, first

    def succeed(self, other: RowFollower) -> None:
        """Go on with the newest text of a follower whose rows had another shape.

        No row of it can be recognised; how many there were says whether the text goes on.
        """
        last = other._texts[-1] if other._texts else None
        if last is not None and (not self._texts or self._texts[-1].number < last.number):
            nothing = np.zeros_like(last.digests)
            unknown = replace(last, digests=nothing, parts=None, cells=last.cells.copy())
            self._texts = [*self._texts, unknown]

    @property
    def digests(self) -> tuple[Digests, Digests]:
        """Of the keys and values of the last step."""
        return self._texts[-1].keys, self._texts[-1].values

    # -- what nearly every step does -------------------------------------------------------

    @property
    def newest(self) -> Text:
        """The text of the last step."""
        return self._texts[-1]

    def may_have_grown(self, given: GivenRows) -> bool:
        """Whether there are the step's tokens more than rows in the newest text, all of them seen.

        Told by sizes alone; what the rows hold is another matter.
        """
        text = self._texts[-1] if self._texts else None
        if (
            text is None
            or given.grown
            or text.mixed
            or not given.new
            or (text.parts is None) == in_turns(given.keys, given.values)
        ):
            return False
        sequences, old = text.cells.shape
        keys = given.keys.shape
        if (keys[0], keys[2]) != (sequences, old + given.new) or not text.whole:
            return False
        if given.visible is not None and not where.seen(given.visible, old + given.new).all():
            return False
        return given.start is None or bool(given.start == text.ends[0])

    def grew(self, given: GivenRows, now: Digests, part: int | None) -> bool:
        """Whether the newest text has the step's tokens more at its end, and is the same else."""
        if not self.may_have_grown(given):
            return False
        before = self.newest.looked_at(part)
        return bool((now[..., : before.shape[-1]] == before).all())

    def go_on(self, text: Text, cells: int) -> None:
        """Take a text for the newest one, some cells longer."""
        self._texts[-1] = text
        self.next_cell += cells

    def _longer(self, given: GivenRows) -> RowStep:
        """A step that only added rows."""
        before, first = self.newest, self.next_cell
        text, keys, values = longer(before, given, first)
        self.go_on(text, before.cells.shape[0] * given.new)
        step = grown_step(before, text.cells, text.positions, first)
        return step.with_rows(before, (keys, values))

    def next_part(self, keys: Tensor, values: Tensor) -> int | None:
        """The part of each row that is looked at this time; None: all of it."""
        self.looks += 1
        whole = keys.numel() <= WHOLE or not in_turns(keys, values)
        return None if whole else self.looks % PARTS

    def _remember(self, text: Text, before: Text | None, *, parted: bool) -> None:
        """Remember a text in place of what it goes on with, unless it parted from that.

        Who forks a text goes on with both in turn; a draft that was rejected is only old.
        """
        if before is not None and not parted:
            self._texts = [one for one in self._texts if one is not before]
        self._texts = [*self._texts[1 - MAX_TEXTS :], text]
