"""Rows kept between frames are the rows of the trace."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.panes import damage_from
from kvtrace.analysis.heads.tensors import head_rows
from kvtrace.errors import TraceError
from kvtrace.trace import Run, Tensor
from kvtrace_tui.panes import rows as module
from kvtrace_tui.panes.rows import RowStore, Shelf


class Counting:
    """Counts what is read of a trace's cells."""

    def __init__(self, trace):
        self.reads = []
        source = trace.source
        real = source.cells

        def cells(layer, tensor, first, count, head):
            self.reads.append((layer, tensor, first, count, head))
            return real(layer, tensor, first, count, head)

        source.cells = cells


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("ahead", [1, 3, 4096])
def test_kept_rows_equal_those_read_anew_whatever_the_order_of_steps(window, ahead, monkeypatch):
    monkeypatch.setattr(module, "LOOK_AHEAD", ahead)
    trace = synthetic_trace(Shape(decode=9, window=window))
    store = RowStore(trace)
    for number in (3, 4, 9, 1, 0, 8, 2):
        for tensor in Tensor:
            for lane in ("cached", "recomputed"):
                mine = store.head(number, 1, tensor, 3, lane=lane)
                assert np.array_equal(mine, head_rows(trace, number, 1, tensor, 3, lane=lane))
        assert np.array_equal(store.layer_keys(number, 1), trace.cache(number, 1).keys)


def test_rows_of_a_lane_that_are_kept_later_are_found_later():
    trace = synthetic_trace(Shape(decode=3))
    compared = trace.source.lane_step
    trace.source.lane_step = lambda lane, step: replace(compared(lane, step), passes=())
    store = RowStore(trace)
    assert store.head(2, 0, Tensor.KEYS, 0, lane="recomputed") is None
    trace.source.lane_step = compared
    assert store.head(2, 0, Tensor.KEYS, 0, lane="recomputed") is not None


def test_stepping_reads_a_head_once():
    trace = synthetic_trace(Shape(decode=9))
    counting, store = Counting(trace), RowStore(trace)
    for number in trace.numbers:
        store.head(number, 0, Tensor.KEYS, 0)
    assert len(counting.reads) == 1


def test_a_growing_trace_reads_only_what_was_added():
    trace = synthetic_trace(Shape(prompt=5, decode=6))
    later = {number: trace.source.steps.pop(number) for number in (4, 5, 6)}
    counting, store = Counting(trace), RowStore(trace)
    store.head(3, 0, Tensor.KEYS, 0)
    trace.source.steps.update(later)
    rows = store.head(6, 0, Tensor.KEYS, 0)
    assert np.array_equal(rows, trace.cache(6, 0).keys[0])
    spans = [(first, count) for _, _, first, count, head in counting.reads if head == 0]
    assert spans[:2] == [(0, 8), (8, 3)]


def test_damage_further_on_does_not_hide_what_can_be_read():
    trace = synthetic_trace(Shape(decode=6))
    damage_from(trace, cell=9)
    store = RowStore(trace)
    assert store.head(4, 0, Tensor.KEYS, 0).shape == (9, 8)
    with pytest.raises(TraceError, match="cell 9 is damaged"):
        store.head(5, 0, Tensor.KEYS, 0)


def test_runs_in_pieces_are_put_together_in_slot_order():
    trace = synthetic_trace()
    step = trace.step(4)
    runs = ((Run(7, 2, 0, 7), Run(0, 3, 2, 0)),)
    trace.source.steps[4] = replace(step, caches=(replace(step.caches[0], attended=runs),))
    rows = RowStore(trace).head(4, 0, Tensor.KEYS, 0)
    every = trace.source.cell_tensors[0, Tensor.KEYS][0]
    assert np.array_equal(rows, every[[7, 8, 0, 1, 2]])


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 2000)
    store = RowStore(synthetic_trace(Shape(layers=3, heads=4, kv_heads=4)))
    for layer in range(3):
        for head in range(4):
            store.head(6, layer, Tensor.KEYS, head)
    assert store._bytes <= 2000
    assert sum(kept.rows.nbytes for kept in store._kept.values()) == store._bytes


def test_too_many_keys_are_not_kept_for_the_grid(monkeypatch):
    monkeypatch.setattr(module, "ALL_KEYS_BYTES", 100)
    assert RowStore(synthetic_trace()).layer_keys(3, 0) is None


def test_a_shelf_lets_go_of_another_trace():
    shelf, one, other = Shelf(), synthetic_trace(), synthetic_trace(seed=1)
    first = shelf.of(one)
    assert shelf.of(one) is first
    assert shelf.of(other) is not first
