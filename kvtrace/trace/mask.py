"""Which cached rows a query may look at, said compactly.

A mask is almost always causal, windowed, chunked or padded; those are numbers. Anything else is
kept in full beside the step. Key index j counts the rows attended to, in order; query index i
counts the rows of this step.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.errors import TraceError
from kvtrace.trace.dtypes import Array


class Mask(Struct, frozen=True, omit_defaults=True):
    """Key j is visible to query i of sequence b when every rule that is set allows it.

    Attributes:
        offset: Causal: j <= i + offset. None: later rows are visible too. For a step that appends
            `new` rows to `past` cached ones the offset is `past`.
        window: Sliding window: j > i + offset - window. Needs `offset`.
        chunk: Chunked attention: (i + origin) // chunk == (j + origin - offset) // chunk, with
            `origin` the position of query 0. Needs `offset`.
        origin: Position of query 0, for `chunk`.
        padding: Hidden rows at the left, per sequence: j >= padding[b]. Empty: none.
        full: The rules above do not describe it: the whole mask is stored beside the step.
        bias: An additive term (relative bias, ALiBi) is stored beside the step.
    """

    offset: int | None = None
    window: int | None = None
    chunk: int | None = None
    origin: int = 0
    padding: tuple[int, ...] = ()
    full: bool = False
    bias: bool = False

    def visible(
        self, sequence: int, new: int, seq: int, *, query_row: int | None = None
    ) -> NDArray[np.bool_]:
        """The rules as a table, [new, seq]; not meaningful when `full` is set.

        With `query_row`, only that query: [1, seq].
        """
        rows = np.arange(new) if query_row is None else np.array([query_row])
        query = rows[:, None]
        key = np.arange(seq)[None, :]
        table = np.ones((len(rows), seq), bool)
        if self.offset is not None:
            table &= key <= query + self.offset
            if self.window is not None:
                table &= key > query + self.offset - self.window
            if self.chunk is not None:
                mine = (query + self.origin) // self.chunk
                table &= (key + self.origin - self.offset) // self.chunk == mine
        if self.padding:
            table &= key >= self.padding[sequence]
        return table


def only_sequence(stored: Array, sequence: int, seq: int, query: int | None = None) -> Array:
    """One sequence of a mask or bias [sequences|1, heads|1, new|1, seq], or one query of it.

    Raises:
        TraceError: It is not of as many rows as were attended to.
    """
    if stored.shape[3] != seq:
        raise TraceError(
            f"a stored mask or bias is for {stored.shape[3]} rows, and {seq} were attended to: "
            "damaged. Record again, or use another copy."
        )
    part: Array = stored[sequence if stored.shape[0] > 1 else 0]
    if query is not None and part.shape[1] > 1:
        row = query % part.shape[1]
        part = part[:, row : row + 1]
    return part
