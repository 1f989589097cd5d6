import numpy as np
import pytest
from msgspec.structs import replace

from builders import synthetic_trace
from kvtrace.analysis.lanes.between import between
from kvtrace.trace import Tensor

LANES = ("recomputed", "referee")


@pytest.fixture
def trace():
    """Three layers, 4 heads on 2 kv heads; the referee is the recomputed lane once more."""
    trace = synthetic_trace()
    source, lane = trace.source, trace.meta.lanes[0]
    source.meta = replace(trace.meta, lanes=(lane, replace(lane, name="referee")))
    for table in (source.passes, source.lane_steps):
        for key in list(table):
            table["referee", key[1]] = table[key]
    for key in list(source.pass_tensors):
        source.pass_tensors["referee", *key[1:]] = source.pass_tensors[key].copy()
    return trace


def test_equal_lanes_are_nothing_apart(trace):
    assert between(trace, 4, 1, 0, LANES).tolist() == [0, 0, 0, 0]


def test_a_difference_counts_for_every_query_head_that_reads_it(trace):
    rows = trace.source.pass_tensors["referee", 0, Tensor.VALUES, 1][0, 1, 8]
    rows[:] = 4.0
    mine = trace.source.pass_tensors["recomputed", 0, Tensor.VALUES, 1][0, 1, 8]
    expected = float(np.abs(mine - 4).max()) / 4
    assert between(trace, 4, 1, 0, LANES).tolist() == pytest.approx([0, 0, expected, expected])
    assert between(trace, 3, 1, 0, LANES).tolist() == [0, 0, 0, 0]  # that row is not new there


def test_a_lane_that_was_not_kept_is_not_equal(trace):
    del trace.source.passes["referee", 0]
    assert np.isnan(between(trace, 4, 1, 0, LANES)).all()
