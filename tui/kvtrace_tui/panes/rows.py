"""Rows that maps and numbers show, kept between frames.

Cells and passes never change once they are written, so what was read stays right: a step forward
reads only the cells it added. How much is kept is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from kvtrace.analysis.changes import cells_of
from kvtrace.analysis.tensors import (
    CACHE_TENSORS,
    at_places,
    attended_runs,
    cell_rows,
    head_rows,
    pass_rows,
    places_of,
    tensor_head,
)
from kvtrace.errors import TraceError
from kvtrace.trace import CACHED, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.view import expanded

KEPT_BYTES = 96 << 20
LOOK_AHEAD = 4096
"""Cells of a head that are read at once, so that stepping reads nothing."""


@dataclass(slots=True)
class _Cells:
    """Consecutive cells of one head that were read: rows [stop - first, dim]."""

    first: int
    rows: Floats

    @property
    def stop(self) -> int:
        return self.first + len(self.rows)


class RowStore:
    """Rows of one trace, read once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._kept: OrderedDict[Hashable, Floats | _Cells] = OrderedDict()
        self._bytes = 0

    def head(
        self,
        number: int,
        layer: int,
        tensor: Tensor,
        head: int,
        sequence: int = 0,
        lane: str = CACHED,
    ) -> Floats | None:
        """As `analysis.tensors.head_rows`, from what is kept where possible.

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows are damaged.
        """
        if lane == CACHED and tensor in CACHE_TENSORS:
            return self._cached_rows(number, layer, tensor, head, sequence)
        if lane != CACHED:
            found = self._pass_rows(number, layer, tensor, head, sequence, lane)
            if found is not None:
                return found
        return head_rows(self.trace, number, layer, tensor, head, sequence, lane)

    def known(self, layer: int, tensor: Tensor, head: int) -> Floats | None:
        """All rows of a K or V head that were read so far, whatever the step; None: none."""
        site = self.trace.site(layer)
        kept = self._kept.get(("cells", site.reads, tensor, tensor_head(site, tensor, head)))
        return kept.rows if isinstance(kept, _Cells) else None

    def _cached_rows(
        self, number: int, layer: int, tensor: Tensor, head: int, sequence: int
    ) -> Floats:
        runs = attended_runs(self.trace, number, layer, sequence)
        if not runs:
            return np.zeros((0, self.trace.site(layer).dim(tensor)), np.float32)
        low = min(run.cell for run in runs)
        high = max(run.cell + run.count for run in runs)
        kept = self._cells(layer, tensor, head, low, high)
        if len(runs) == 1:
            return kept.rows[low - kept.first : high - kept.first]
        return kept.rows[cells_of(runs) - kept.first]

    def _cells(self, layer: int, tensor: Tensor, head: int, low: int, high: int) -> _Cells:
        """At least the cells [low, high) of a head."""
        site = self.trace.site(layer)
        own = tensor_head(site, tensor, head)
        key = ("cells", site.reads, tensor, own)
        kept = self._kept.get(key)
        if isinstance(kept, _Cells) and kept.first <= low and high <= kept.stop:
            self._kept.move_to_end(key)
            return kept
        writes = self.trace.source.writes(site.reads)
        last = writes[-1]
        end = int(last["first_cell"] + last["rows"] * last["sequences"])

        def read(first: int, stop: int) -> Floats:
            return cell_rows(self.trace, layer, tensor, own, first, stop - first)

        start, first = low, low
        before: list[Floats] = []
        if isinstance(kept, _Cells) and kept.first <= low <= kept.stop:
            start, first, before = kept.first, kept.stop, [kept.rows]
        try:
            rows = read(first, min(end, max(high, first + LOOK_AHEAD)))
        except TraceError:
            # a cell further on is damaged: that is no reason to hide these
            rows = read(first, high)
        new = _Cells(start, np.concatenate([*before, rows]))
        self._keep(key, new)
        return new

    def _pass_rows(
        self, number: int, layer: int, tensor: Tensor, head: int, sequence: int, lane: str
    ) -> Floats | None:
        """Rows of a lane that keeps its own forward; None: it does not."""
        compared = self.trace.compared(number, lane)
        if compared is None or sequence >= len(compared.passes):
            return None
        place, row, first = compared.passes[sequence]
        site = self.trace.site(layer)
        own = tensor_head(site, tensor, head)
        index = site.reads if tensor in CACHE_TENSORS else layer
        rows = self._once(
            ("pass", lane, place, row, tensor, index, own),
            lambda: pass_rows(self.trace, lane, (place, row), layer, tensor, own),
        )
        if rows is None:
            return None
        new = self.trace.step(number).new_at(site.index)
        if tensor not in CACHE_TENSORS:
            return rows[first : first + new]
        positions = self._once(
            ("positions", lane, place, row), lambda: self._positions(lane, place, row)
        )
        if positions is None:
            return None
        runs = attended_runs(self.trace, number, layer, sequence)
        wanted = expanded([(run.position, run.count) for run in runs])
        until = first + self.trace.step(number).new
        return at_places(rows, places_of(positions[:until].astype(np.int64), wanted))

    def _positions(self, lane: str, place: int, row: int) -> Floats | None:
        """Position of each place of a pass, exact in float64."""
        step = self.trace.source.pass_step(lane, place)
        return None if step is None else np.array(step.positions[row], np.float64)

    def _once(self, key: Hashable, read: Callable[[], Floats | None]) -> Floats | None:
        kept = self._kept.get(key)
        if isinstance(kept, np.ndarray):
            self._kept.move_to_end(key)
            return kept
        found = read()
        if found is not None:
            self._keep(key, found)
        return found

    def _keep(self, key: Hashable, value: Floats | _Cells) -> None:
        before = self._kept.pop(key, None)
        self._bytes += _size(value) - (0 if before is None else _size(before))
        self._kept[key] = value
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)


class Shelf:
    """The rows of whatever trace is shown; panes that show the same one share it."""

    def __init__(self) -> None:
        self._store: RowStore | None = None

    def of(self, trace: Trace) -> RowStore:
        """Rows of a trace; those of another one are let go."""
        if self._store is None or self._store.trace is not trace:
            self._store = RowStore(trace)
        return self._store


def _size(value: Floats | _Cells) -> int:
    return value.rows.nbytes if isinstance(value, _Cells) else value.nbytes
