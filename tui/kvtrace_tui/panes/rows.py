"""Rows that maps and numbers show, kept between frames.

Cells and passes never change once they are written, so what was read stays right: a step forward
reads only the cells it added. How much is kept is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import numpy as np

from kvtrace.analysis.heads.tensors import (
    CACHE_TENSORS,
    attended_runs,
    cell_rows,
    head_rows,
    pass_rows,
    tensor_head,
)
from kvtrace.trace import CACHED, NO_TOKEN, Tensor, Trace, dtypes
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.reference import at_places, places_of
from kvtrace.trace.step import Runs
from kvtrace.trace.view import positions_of
from kvtrace_tui.panes.cells import Cells, Read, grown_to, span

KEPT_BYTES = 96 << 20
ALL_KEYS_BYTES = 128 << 20
LOOK_AHEAD = 4096
"""Cells of a head that are read at once, so that stepping reads nothing.

Blocks of them, counted from cell 0: what is read for a step depends on the step alone.
"""

_ANSWERS_KEPT = 24
_ANSWER_ROWS = 1 << 14
T = TypeVar("T")


class RowStore:
    """Rows of one trace, read once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._kept: OrderedDict[Hashable, Floats | Cells] = OrderedDict()
        self._bytes = 0
        self._layers: dict[int, Cells] = {}
        self._answers: OrderedDict[Hashable, object] = OrderedDict()

    def answered(self, key: Hashable, rows: int, ask: Callable[[], T]) -> T:
        """What was found out about rows that never change, asked once while it is looked at.

        Args:
            key: Says all that the answer depends on.
            rows: Rows it is about: of very many, nothing is kept.
            ask: Finds it out; None is asked for again.
        """
        if key in self._answers:
            self._answers.move_to_end(key)
            return cast("T", self._answers[key])
        found = ask()
        if found is not None and rows <= _ANSWER_ROWS:
            self._answers[key] = found
            while len(self._answers) > _ANSWERS_KEPT:
                self._answers.popitem(last=False)
        return found

    def head(
        self,
        number: int,
        layer: int,
        tensor: Tensor,
        head: int,
        sequence: int = 0,
        lane: str = CACHED,
    ) -> Floats | None:
        """As `analysis.heads.tensors.head_rows`, from what is kept where possible.

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows are damaged.
        """
        if lane == CACHED and tensor in CACHE_TENSORS:
            return self._cached_rows(number, layer, tensor, head, sequence)
        if lane != CACHED:
            compared = self.trace.compared(number, lane)
            if compared is None or sequence >= len(compared.passes):
                return None
            place = compared.passes[sequence]
            return self._pass_rows(number, layer, tensor, head, sequence, lane, place)
        return self._once(
            ("step", number, layer, tensor, head, sequence),
            lambda: head_rows(self.trace, number, layer, tensor, head, sequence),
        )

    def around(
        self, number: int, layer: int, tensor: Tensor, head: int, sequence: int = 0
    ) -> tuple[tuple[int, int], Floats] | None:
        """The blocks of cells in which the rows of a K or V head lie, whatever was read before.

        None: there are none, or a cell of them is damaged.

        Returns:
            The first cell and the one after the last, and the rows between, [cells, dim].

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows themselves are damaged.
        """
        runs = attended_runs(self.trace, number, layer, sequence)
        if not runs:
            return None
        kept = self._cells(layer, tensor, head, runs)
        blocks = self._blocks(self.trace.site(layer).reads, span(runs))
        if not kept.have(blocks):
            return None
        return blocks, kept.rows[blocks[0] - kept.first : blocks[1] - kept.first]

    def layer_keys(self, number: int, layer: int, sequence: int = 0) -> Floats | None:
        """K of all kv heads that a site was given, [kv_heads, seq, key_dim].

        None: all keys of this trace are too many to keep.

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows are damaged.
        """
        if self._all_keys_bytes() > ALL_KEYS_BYTES:
            return None
        store = self.trace.cache_layer(layer)
        runs = attended_runs(self.trace, number, layer, sequence)
        if not runs:
            return np.zeros((store.num_kv_heads, 0, store.key_dim), np.float32)

        def read(first: int, stop: int) -> Floats:
            count = stop - first
            raw = self.trace.source.cells(store.index, Tensor.KEYS, first, count, None)
            return dtypes.widen(raw, store.dtype)

        grown = self._grown(self._layers.get(store.index), store.index, runs, read)
        self._layers[store.index] = grown
        return grown.of(runs)

    def _cached_rows(
        self, number: int, layer: int, tensor: Tensor, head: int, sequence: int
    ) -> Floats:
        site = self.trace.site(layer)
        runs = attended_runs(self.trace, number, layer, sequence)
        if not runs:
            return np.zeros((0, site.dim(tensor)), np.float32)
        return self._cells(layer, tensor, head, runs).of(runs)

    def _cells(self, layer: int, tensor: Tensor, head: int, runs: Runs) -> Cells:
        """Cells of a K or V head, with those of the runs among them."""
        site = self.trace.site(layer)
        own = tensor_head(site, tensor, head)
        key = ("cells", site.reads, tensor, own)

        def read(first: int, stop: int) -> Floats:
            return cell_rows(self.trace, layer, tensor, own, first, stop - first)

        kept = self._kept.get(key)
        grown = self._grown(kept if isinstance(kept, Cells) else None, site.reads, runs, read)
        if grown is not kept:
            self._keep(key, grown)
        else:
            self._kept.move_to_end(key)
        return grown

    def _grown(self, kept: Cells | None, cache_layer: int, runs: Runs, read: Read) -> Cells:
        """What was kept, or more, so that the runs are in it, and the blocks around if they can."""
        needed = span(runs)
        return grown_to(kept, needed, self._blocks(cache_layer, needed), read)

    def _blocks(self, cache_layer: int, needed: tuple[int, int]) -> tuple[int, int]:
        """The first and the last cell, exclusive, of the blocks that these reach into."""
        low, high = needed
        written = self._cells_written(cache_layer)
        end = -(-high // LOOK_AHEAD) * LOOK_AHEAD
        return low // LOOK_AHEAD * LOOK_AHEAD, max(high, min(written, end))

    def _all_keys_bytes(self) -> int:
        """float32 keys of all layers at the end of the trace."""
        total = 0
        for layer in self.trace.meta.cache_layers:
            cells = self._cells_written(layer.index)
            total += 4 * cells * layer.num_kv_heads * layer.key_dim
        return total

    def _cells_written(self, cache_layer: int) -> int:
        """Cells of a cache layer at the end of the trace; steps may claim more than was written."""
        writes = self.trace.source.writes(cache_layer)
        if not writes.size:
            return 0
        return int(writes[-1]["first_cell"] + writes[-1]["rows"] * writes[-1]["sequences"])

    def _pass_rows(
        self,
        number: int,
        layer: int,
        tensor: Tensor,
        head: int,
        sequence: int,
        lane: str,
        passed: tuple[int, int, int],
    ) -> Floats | None:
        """Rows of a lane that keeps its own forwards; None: it has none of this tensor."""
        place, row, first = passed
        site = self.trace.site(layer)
        own = tensor_head(site, tensor, head)
        index = site.reads if tensor in CACHE_TENSORS else site.index
        rows = self._once(
            ("pass", lane, place, row, tensor, index, own),
            lambda: pass_rows(self.trace, lane, (place, row), layer, tensor, own),
        )
        if rows is None:
            return None
        step = self.trace.step(number)
        if tensor not in CACHE_TENSORS:
            return rows[first : first + step.new_at(site.index)]
        runs = attended_runs(self.trace, number, layer, sequence)
        wanted = positions_of(runs)
        if site.kind == "cross":
            return at_places(rows, places_of(np.arange(len(rows)), wanted))
        positions = self._once(
            ("positions", lane, place, row, len(rows)),
            lambda: self._positions(lane, place, row, len(rows)),
        )
        if positions is None:
            return None
        front = int((positions == NO_TOKEN + np.arange(len(positions))).sum())
        until = front + first + step.new
        return at_places(rows, places_of(positions[:until].astype(np.int64), wanted))

    def _positions(self, lane: str, place: int, row: int, count: int) -> Floats | None:
        """Position of each of a layer's rows in a pass, exact in float64.

        Rows beyond those of its tokens stand in front of them.
        """
        step = self.trace.source.pass_step(lane, place)
        if step is None:
            return None
        front = NO_TOKEN + np.arange(max(0, count - step.new))
        return np.concatenate([front, step.positions[row]]).astype(np.float64)

    def _once(self, key: Hashable, read: Callable[[], Floats | None]) -> Floats | None:
        kept = self._kept.get(key)
        if isinstance(kept, np.ndarray):
            self._kept.move_to_end(key)
            return kept
        found = read()
        if found is not None:
            self._keep(key, found)
        return found

    def _keep(self, key: Hashable, value: Floats | Cells) -> None:
        before = self._kept.pop(key, None)
        self._bytes += value.nbytes - (0 if before is None else before.nbytes)
        self._kept[key] = value
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


class Shelf:
    """The rows of whatever trace is shown; panes that show the same one share it."""

    def __init__(self) -> None:
        self._store: RowStore | None = None

    def of(self, trace: Trace) -> RowStore:
        """Rows of a trace; those of another one are let go."""
        if self._store is None or self._store.trace is not trace:
            self._store = RowStore(trace)
        return self._store
