"""What became of the rows of a site in one step."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from torch import Tensor

from kvtrace.record.flow.rows.slots import NOWHERE, Numbers
from kvtrace.record.flow.rows.texts import Text


class RowStep(Struct, frozen=True, eq=False):
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
        fresh: A copy of the keys and values written, where the step only added rows at the end.
        among: Sequences of the text that this one goes on with.
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
    fresh: tuple[Tensor, Tensor] | None = None
    among: int = 0

    def with_rows(self, before: Text, fresh: tuple[Tensor, Tensor]) -> RowStep:
        """The same of another text with the same cells and positions.

        Args:
            before: It, as it was.
            fresh: A copy of the keys and values it got.
        """
        return RowStep(
            self.cells,
            self.positions,
            self.slots,
            self.first_cell,
            self.written,
            self.origin,
            self.taken,
            self.at,
            before.number,
            self.before,
            self.computed,
            self.new,
            fresh=fresh,
        )

    @property
    def rows(self) -> int:
        """Cells written per sequence."""
        return int(self.written.shape[1])

    @property
    def whole(self) -> bool:
        """Whether every slot holds a row."""
        return len(self.slots) == int(self.cells.shape[1])


def grown_step(before: Text, cells: Numbers, positions: Numbers, first: int) -> RowStep:
    """A step that only added rows; those are still to come.

    Args:
        before: The text as it was.
        cells: As they are now.
        positions: As they are now.
        first: Number of the first new cell.
    """
    (sequences, seq), old = cells.shape, before.cells.shape[1]
    slots = np.arange(seq)
    origin = np.tile(slots, (sequences, 1))
    origin[:, old:] = NOWHERE
    return RowStep(
        cells,
        positions,
        slots,
        first,
        np.tile(slots[old:], (sequences, 1)),
        origin,
        np.arange(sequences),
        before.ends,
        before.number,
        old,
        False,
        seq - old,
    )
