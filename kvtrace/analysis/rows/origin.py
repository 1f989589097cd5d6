"""Where each attended row comes from: token, position, slot, the step that wrote it.

A cell is one K,V row, written once. What a step wrote is in the trace, so a row's token is the
one that came in with it; rows rewritten later (quantised or re-rotated caches) keep the token of
their position. Rows that stand for several tokens, or for none, have no token here, nor have
those of an encoder whose tokens were not seen.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.heads.tensors import attended_runs
from kvtrace.analysis.rows.source import source_tokens
from kvtrace.errors import MissingError
from kvtrace.trace import NO_TOKEN, CacheStep, Step, Trace, stands_for_none
from kvtrace.trace.step import Runs
from kvtrace.trace.view import cells_of, positions_of, slots_of

UNKNOWN = -1

NO_SINGLE = "no single token"
"""Of a row that is a summary of several tokens, or of none."""


class Rows(Struct, frozen=True):
    """All rows one sequence's attention was given, in slot order; every array is [seq].

    Attributes:
        cells: Cell numbers.
        slots: Places in the array the attention was given.
        positions: Logical positions; negative: padding, or rows that stand for no single token
            (`stands_for_none`).
    """

    cells: NDArray[np.int64]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]

    @classmethod
    def of(cls, runs: Runs) -> Rows:
        """Those of some runs."""
        return cls(cells_of(runs), slots_of(runs), positions_of(runs))


class Origin(Struct, frozen=True):
    """Where one row comes from.

    Attributes:
        row: Index among the attended rows.
        cell, slot, position: Of the row; a negative position is padding, or no position at all.
        token: Its id; -1: unknown, or none.
        written: Step that wrote this cell; None if it is lost to damage. Where nothing is cached,
            the step that attends to it.
        sequence: Row of the batch that wrote it (another one after a reorder).
        first: Step that first computed a row at this position; earlier than `written` when the
            row was changed in place.
        shared_from: Site that wrote it, when this one takes over another's rows.
        evicted: Whether the cache lets it go after this step.
    """

    row: int
    cell: int
    slot: int
    position: int
    token: int
    written: int | None
    sequence: int
    first: int | None
    shared_from: int | None
    evicted: bool

    @property
    def padding(self) -> bool:
        """Whether it stands for no token because the text begins after it."""
        return self.position < 0 and not self.for_none

    @property
    def for_none(self) -> bool:
        """Whether it stands for no single token: for several, or for none."""
        return stands_for_none(self.position)

    @property
    def changed(self) -> bool:
        """Whether it was rewritten in place after it was first computed."""
        return self.first is not None and self.first != self.written


def attended_rows(trace: Trace, number: int, layer: int, sequence: int = 0) -> Rows:
    """Cells, slots and positions without reading a tensor.

    Raises:
        MissingError: The site did not attend in this step.
    """
    return Rows.of(attended_runs(trace, number, layer, sequence))


def origin(trace: Trace, number: int, layer: int, row: int, sequence: int = 0) -> Origin:
    """Where one attended row comes from.

    Raises:
        MissingError: The site did not attend in this step, or has no such row.
    """
    rows = attended_rows(trace, number, layer, sequence)
    if not 0 <= row < rows.cells.size:
        raise MissingError(
            f"{trace.name}: step {number}, layer {layer}: row {row} was asked for, but the "
            f"attention was given {rows.cells.size} rows."
        )
    site = trace.site(layer)
    cell, position = int(rows.cells[row]), int(rows.positions[row])
    kept = trace.cache_layer(layer).kind != "uncached"  # else it is computed anew by every step
    written, writer = _writer(trace, site.reads, cell) if kept else (number, sequence)
    if site.kind != "self" or stands_for_none(position):
        count, source = len(rows.cells), None
        if site.kind != "self":
            source = source_tokens(trace, number, written, count, sequence)
        first, token = written, UNKNOWN if source is None else int(source[row])
    elif written is not None and not _rewrote(trace, site.reads, written):
        first, token = (
            written,
            int(tokens_of_cells(trace, site.reads, rows.cells[row : row + 1])[0]),
        )
    else:
        first, token = _first(trace, number, sequence, position)
    lost = evicted_cells(trace.cache_step(number, layer), sequence)
    return Origin(
        row=row,
        cell=cell,
        slot=int(rows.slots[row]),
        position=position,
        token=token,
        written=written,
        sequence=writer,
        first=first,
        shared_from=site.shared_from if site.source == "shared" else None,
        evicted=kept and cell in lost,
    )


def evicted_cells(group: CacheStep, sequence: int) -> NDArray[np.int64]:
    """Cells a sequence attended to in a step and no longer holds after it, ascending."""
    attended, kept = group.attended[sequence], group.kept
    if sequence >= len(kept) or attended == kept[sequence]:
        return np.zeros(0, np.int64)
    return np.setdiff1d(cells_of(attended), cells_of(kept[sequence]))


def tokens_of_rows(
    trace: Trace,
    number: int,
    layer: int,
    sequence: int = 0,
    only: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Token id of every attended row, or of those in `only`; -1 where unknown.

    Raises:
        MissingError: The site did not attend in this step.
    """
    site = trace.site(layer)
    rows = attended_rows(trace, number, layer, sequence)
    if site.kind != "self":
        count = rows.cells.size
        written = _writer(trace, site.reads, int(rows.cells[0]))[0] if count else None
        source = source_tokens(trace, number, written, count, sequence)
        whole = np.full(rows.cells.size, UNKNOWN, np.int64) if source is None else source
        return whole if only is None else whole[only]
    cells, positions = rows.cells, rows.positions
    if only is not None:
        cells, positions = cells[only], positions[only]
    tokens = tokens_of_cells(trace, site.reads, cells)
    for at in np.flatnonzero(tokens == UNKNOWN).tolist():
        tokens[at] = _first(trace, number, sequence, int(positions[at]))[1]
    tokens[positions < NO_TOKEN >> 1] = UNKNOWN
    return tokens


def tokens_of_cells(trace: Trace, cache_layer: int, cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token id that came in with each cell; -1 where its step did not write one row a token."""
    writes = trace.source.writes(cache_layer)
    overview = trace.overview
    tokens = np.full(cells.size, UNKNOWN, np.int64)
    if writes.size == 0 or cells.size == 0:
        return tokens
    entry = np.searchsorted(writes["first_cell"], cells, side="right") - 1
    inside = cells - writes["first_cell"][entry]
    known = (entry >= 0) & (inside < writes["rows"][entry] * writes["sequences"][entry])
    steps = writes["step"][entry]
    at = np.minimum(np.searchsorted(overview["number"], steps), max(len(overview) - 1, 0))
    simple = known & (overview["new"][at] == 1) & (writes["rows"][entry] == 1) & (inside == 0)
    simple &= overview["number"][at] == steps
    tokens[simple] = overview["token"][at][simple]
    for number in sorted(set(steps[known & ~simple].tolist())):
        mine = np.flatnonzero(known & ~simple & (steps == number))
        ids = _flat_tokens(trace, cache_layer, number)
        if ids is not None:
            tokens[mine] = ids[inside[mine]]
    return tokens


def _flat_tokens(trace: Trace, cache_layer: int, number: int) -> NDArray[np.int64] | None:
    """Tokens of a step in the order of its cells; None if it did not write one row a token."""
    step = _step(trace, number)
    group = None if step is None else step.cache_step(cache_layer)
    if step is None or group is None or group.rows != step.new or group.rewritten:
        return None
    if len(group.attended) != step.num_sequences:
        return None
    if any(stands_for_none(run.position) for runs in group.attended for run in runs):
        return None
    return np.array(step.tokens, np.int64).reshape(-1)


def _writer(trace: Trace, cache_layer: int, cell: int) -> tuple[int | None, int]:
    """Step and sequence that wrote a cell."""
    writes = trace.source.writes(cache_layer)
    entry = int(np.searchsorted(writes["first_cell"], cell, side="right")) - 1
    if entry < 0:
        return None, 0
    row = writes[entry]
    inside, rows = cell - int(row["first_cell"]), int(row["rows"])
    if inside >= rows * int(row["sequences"]):
        return None, 0
    return int(row["step"]), inside // rows


def _rewrote(trace: Trace, cache_layer: int, number: int) -> bool:
    """Whether a step's cells are not one row a token of its own."""
    return _flat_tokens(trace, cache_layer, number) is None


def _first(trace: Trace, number: int, sequence: int, position: int) -> tuple[int | None, int]:
    """Step and token of a position in a sequence's own history, following its parents."""
    step = None if stands_for_none(position) else _step(trace, number)
    while step is not None:
        if sequence < step.num_sequences and position in step.positions[sequence]:
            at = step.positions[sequence].index(position)
            return step.number, step.tokens[sequence][at]
        if sequence < len(step.order):
            sequence = step.order[sequence]
        step = None if step.parent is None else _step(trace, step.parent)
    return None, UNKNOWN


def _step(trace: Trace, number: int) -> Step | None:
    try:
        return trace.step(number)
    except MissingError:
        return None
