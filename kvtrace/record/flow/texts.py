"""What is remembered of a text between steps: digests of its rows, their cells and positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.flow.slots import NOWHERE, UNWRITTEN, Flags, Numbers
from kvtrace.record.match import PARTS, Digests, digest

LONG = 16
"""Features per head from which a row is long enough to be looked at in turns."""


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
class Text:
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
        """Slots that hold rows."""
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
class Match:
    """Which rows are known; the text they are of, and what it looks like to the same glance."""

    text: Text | None
    origin: Numbers
    taken: Numbers
    changed: Flags


def in_turns(keys: Tensor, values: Tensor) -> bool:
    """Whether rows are long enough to be looked at in turns."""
    return min(keys.shape[3], values.shape[3]) >= LONG


def remembered(match: Match, given: Given, glance: tuple[Digests, Digests] | None) -> Text:
    """Digests of all slots: old ones as far as they are known, the others calculated.

    Args:
        match: Which are known.
        given: What the site was given.
        glance: Digests of all rows, where they were looked at whole.
    """
    sequences, _, seq, _ = given.keys.shape
    turns = in_turns(given.keys, given.values)
    shape = (sequences, seq)
    text = Text(
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


def _take_over(text: Text, before: Text, match: Match) -> None:
    """Everything remembered of rows that are known."""
    rows = match.taken[:, None]
    known = match.origin != NOWHERE
    for name in ("keys", "values", "lengths", "positions"):
        getattr(text, name)[known] = getattr(before, name)[rows, match.origin][known]
    for name in ("key_parts", "value_parts"):
        mine, theirs = getattr(text, name), getattr(before, name)
        if mine is not None and theirs is not None:
            mine[:, known] = theirs[:, rows, match.origin][:, known]


def _calculate(text: Text, given: Given, columns: Numbers, unknown: Flags) -> None:
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
