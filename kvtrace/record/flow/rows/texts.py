"""What is remembered of a text between steps: digests of its rows, their cells and positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.flow.rows.slots import NOWHERE, UNWRITTEN, Flags, Numbers
from kvtrace.record.match import PARTS, Digests, glance, in_parts

LONG = 16
"""Features per head from which a row is long enough to be looked at in turns."""


class GivenRows(Struct, frozen=True, eq=False):
    """What a site was given in one step.

    Attributes:
        keys, values: [sequences, kv_heads, seq, dim].
        new: Query rows per sequence.
        visible: Broadcasts to [sequences, heads, new, seq]; None: every row is seen.
        grown: The tokens of this step are those of the one before and more.
        start: Position of the first token, where the model was told.
        pads: Hidden tokens at the left per sequence, where the model was told.
        number: Of the step.
        resumed: The model was given what an earlier step had filled.
        tokens: Tokens per sequence that came in; 0 where the rows need not be theirs.
        again: The model was handed the tokens of the step before, and what that one was handed.
        held: Rows of each sequence, with those of this step or without, where the model was told
            that they are not equally many.
    """

    keys: Tensor
    values: Tensor
    new: int
    visible: Tensor | None = None
    grown: bool = False
    start: int | None = None
    pads: tuple[int, ...] | None = None
    number: int = 0
    resumed: bool = False
    tokens: int = 0
    again: bool = False
    held: tuple[int, ...] | None = None


@dataclass(slots=True, eq=False)
class Text:
    """A text as the site attended to it last; arrays are [sequences, slots].

    Attributes:
        digests: Of keys and values, [2, sequences, slots].
        parts: Of each part of long rows, [2, PARTS, sequences, slots]; None for short ones.
        lengths: Euclidean length of each key.
        cells, positions: Of each row; no cell where no query has ever seen one.
        ends: Position after the last token, [sequences].
        number: Of the step.
        mixed: Some of its rows stood for no single token.
        filled: Every slot holds a row, as is known without looking.
        new: Tokens per sequence that the step took in, where it did more than add rows.
        padded: It is put together of several; shorter ones have slots without a cell.
    """

    digests: Digests
    parts: Digests | None
    lengths: NDArray[np.float32]
    cells: Numbers
    positions: Numbers
    ends: Numbers
    number: int
    mixed: bool = False
    filled: bool = False
    new: int = 1
    padded: bool = False

    @property
    def live(self) -> Flags:
        """Slots that hold rows."""
        found: Flags = self.cells != UNWRITTEN
        return found

    @property
    def whole(self) -> bool:
        """Whether every slot holds a row."""
        return self.filled or bool((self.cells != UNWRITTEN).all())

    @property
    def count(self) -> int:
        """Rows of the longest sequence."""
        return int(self.live.sum(1).max(initial=0))

    @property
    def keys(self) -> Digests:
        """Digests of the keys."""
        found: Digests = self.digests[0]
        return found

    @property
    def values(self) -> Digests:
        """Digests of the values."""
        found: Digests = self.digests[1]
        return found

    def looked_at(self, part: int | None) -> Digests:
        """Digests of keys and values, whole or of a part, [2, sequences, slots]."""
        return self.digests if part is None or self.parts is None else self.parts[:, part]


class Match(Struct, frozen=True, eq=False):
    """Which rows are known; the text they are of, and what it looks like to the same glance."""

    text: Text | None
    origin: Numbers
    taken: Numbers
    changed: Flags


def in_turns(keys: Tensor, values: Tensor) -> bool:
    """Whether rows are long enough to be looked at in turns."""
    return min(keys.shape[3], values.shape[3]) >= LONG


def remembered(match: Match, given: GivenRows, looked: Digests | None) -> Text:
    """Digests of all slots: old ones as far as they are known, the others calculated.

    Args:
        match: Which are known.
        given: What the site was given.
        looked: Digests of all rows, where they were looked at whole.
    """
    sequences, _, seq, _ = given.keys.shape
    turns = in_turns(given.keys, given.values)
    shape = (sequences, seq)
    text = Text(
        np.zeros((2, *shape), np.int64),
        np.zeros((2, PARTS, *shape), np.int64) if turns else None,
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
    if looked is not None:
        text.digests = looked
    return text


def longer(text: Text, given: GivenRows, first_cell: int) -> tuple[Text, Tensor, Tensor]:
    """A text after rows were added at its end, and a copy of those rows.

    Args:
        text: Before; all its slots hold rows, and still do.
        given: What the site was given.
        first_cell: Number of the first new cell.
    """
    old = text.cells.shape[1]
    keys, values = _copied(given.keys.detach()[:, :, old:], given.values.detach()[:, :, old:])
    new = keys.shape[2]
    cells, positions = more_places(text, first_cell, new)
    digests, parts = _digested(keys, values, turns=text.parts is not None)
    grown = Text(
        np.concatenate((text.digests, digests), -1),
        None if text.parts is None else np.concatenate((text.parts, parts), -1),
        np.concatenate((text.lengths, lengths(keys)), -1),
        cells,
        positions,
        text.ends + new,
        given.number,
        filled=True,
    )
    return grown, keys, values


def more_places(text: Text, first_cell: int, new: int) -> tuple[Numbers, Numbers]:
    """Cells and positions of a text with so many rows more per sequence."""
    sequences = text.cells.shape[0]
    cells = first_cell + np.arange(sequences * new).reshape(sequences, new)
    positions = text.ends[:, None] + np.arange(new)
    return (
        np.concatenate((text.cells, cells), -1),
        np.concatenate((text.positions, positions), -1),
    )


def _copied(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of both; in one go where their shapes allow it."""
    if keys.shape != values.shape or keys.dtype != values.dtype or keys.device != values.device:
        return keys.clone(), values.clone()
    both = torch.cat((keys, values))
    sequences = keys.shape[0]
    return both[:sequences], both[sequences:]


def _digested(keys: Tensor, values: Tensor, *, turns: bool) -> tuple[Digests, Digests]:
    """Digests of keys and values, [2, sequences, seq], and of their parts, [2, PARTS, …]."""
    if not turns:
        return glance(keys, values), np.zeros((2, 0), np.int64)
    if keys.shape == values.shape and keys.dtype == values.dtype:
        parts = in_parts(torch.cat((keys, values)))
        parts = parts.reshape(PARTS, 2, keys.shape[0], keys.shape[2])
        parts = parts.swapaxes(0, 1)
    else:
        parts = np.stack((in_parts(keys), in_parts(values)))
    return parts.sum(1), parts


def lengths(keys: Tensor) -> NDArray[np.float32]:
    """Euclidean length of each key over all heads, [sequences, seq]."""
    norms = torch.linalg.vector_norm(keys.detach().float(), dim=(1, 3))
    found: NDArray[np.float32] = norms.cpu().numpy()
    return found


def _take_over(text: Text, before: Text, match: Match) -> None:
    """Everything remembered of rows that are known."""
    rows = match.taken[:, None]
    known = match.origin != NOWHERE
    for mine, theirs in (
        (text.digests, before.digests),
        (text.parts, before.parts),
        (text.lengths, before.lengths),
        (text.positions, before.positions),
    ):
        if mine is not None and theirs is not None:
            mine[..., known] = theirs[..., rows, match.origin][..., known]


def _calculate(text: Text, given: GivenRows, columns: Numbers, unknown: Flags) -> None:
    """Digests of some slots, where they are not known."""
    every = len(columns) == given.keys.shape[2]
    keys, values = (
        x.detach() if every else x.detach()[:, :, columns.tolist()]
        for x in (given.keys, given.values)
    )
    wanted = unknown[:, columns]

    def put(target: NDArray[np.generic], found: NDArray[np.generic]) -> None:
        target[..., columns] = np.where(wanted, found, target[..., columns])

    digests, parts = _digested(keys, values, turns=text.parts is not None)
    put(text.digests, digests)
    put(text.lengths, lengths(keys))
    if text.parts is not None:
        put(text.parts, parts)
