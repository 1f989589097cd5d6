"""Cached against recomputed: rounding or not, and where."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.heads.statistics import statistics
from kvtrace.analysis.lanes.compare import Verdict, compare, compare_rows, verdict
from kvtrace.analysis.lanes.parting import first_parting, largest_difference, worst
from kvtrace.analysis.selfcheck import self_check
from kvtrace.trace import Tensor


def test_difference_by_hand():
    value = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    other = np.array([[1.0, 2.5], [3.0, 5.0]], np.float32)
    found = compare_rows(value, other, 0.15)
    assert found.absolute.tolist() == [[0, 0.5], [0, 1]]
    assert np.allclose(found.relative, [[0, 0.1], [0, 0.2]])
    assert (found.largest, found.row, found.dim) == (1.0, 1, 1)
    assert found.largest_relative == pytest.approx(0.2)
    assert found.beyond == 1
    assert found.rms == pytest.approx(np.sqrt(1.25 / 4))
    assert found.verdict is Verdict.SUSPICIOUS


def test_absent_rows_are_not_compared_and_never_equal():
    value = np.ones((3, 2), np.float32)
    other = np.array([[np.nan, np.nan], [1, 1], [1, 1]], np.float32)
    found = compare_rows(value, other, 1e-5)
    assert found.rows_compared == 2
    assert found.verdict is Verdict.EQUAL
    nothing = compare_rows(value, np.full((3, 2), np.nan, np.float32), 1e-5)
    assert nothing.verdict is Verdict.NOT_COMPARED
    assert not nothing.verdict.harmless
    assert np.isnan(nothing.largest)
    assert nothing.beyond == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_a_class_of_its_own(broken):
    value = np.array([[1.0, broken], [3.0, 4.0]], np.float32)
    found = compare_rows(value, np.ones((2, 2), np.float32), 1e-5)
    assert found.verdict is Verdict.NOT_FINITE
    assert (found.row, found.dim) == (0, 1)


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        (0.0, Verdict.EQUAL),
        (1e-5, Verdict.ROUNDING),
        (2e-5, Verdict.ROUNDING),
        (2.1e-5, Verdict.SUSPICIOUS),
        (2e-4, Verdict.SUSPICIOUS),
        (2.1e-4, Verdict.BUG),
        (float("inf"), Verdict.NOT_FINITE),
    ],
)
def test_the_verdict_follows_the_lanes_tolerance(relative, expected):
    assert verdict(relative, 2e-5) is expected


def test_a_healthy_trace_shows_rounding_only():
    trace = synthetic_trace()
    for tensor in Tensor:
        found = compare(trace, 4, 1, tensor, 3)
        assert found.verdict is Verdict.ROUNDING, tensor
        assert found.value.shape == ((9, 8) if tensor in (1, 2) else (1, 8))
    assert first_parting(trace) is None
    assert worst(trace, 4) is Verdict.ROUNDING


def test_a_lane_that_was_not_recorded_compares_nothing():
    trace = synthetic_trace()
    found = compare(trace, 4, 1, Tensor.KEYS, 0, lane="referee")
    assert found.verdict is Verdict.NOT_COMPARED
    assert worst(trace, 4, "referee") is Verdict.NOT_COMPARED
    assert largest_difference(trace, "referee") is None


def planted():
    """A healthy trace with a small fault at step 2, layer 1, V and a large one at step 5."""
    trace = synthetic_trace(Shape(heads=4, kv_heads=2))
    for number, layer, tensor, head, size in ((2, 1, 2, 1, 1e-3), (5, 0, 0, 3, 0.5)):
        compared = trace.source.lane_steps["recomputed", number]
        at = layer, tensor, head
        compared.max_abs[at], compared.reference_max[at] = size, 1.0
        compared.row[at], compared.dim[at], compared.sequence[at] = 0, 6, 0
    return trace


def test_lanes_part_first_in_causal_order():
    found = first_parting(planted())
    assert (found.step, found.layer, found.tensor, found.head) == (2, 1, Tensor.VALUES, 1)
    assert found.query_head == 2
    assert found.row == 6
    assert found.dim == 6
    assert found.verdict is Verdict.BUG
    assert found.text == "step 2, layer 1, V head 1, dim 6: 1.00e-03 (1.0e-03 relative, bug-sized)"


def test_the_largest_difference_is_elsewhere():
    found = largest_difference(planted())
    assert (found.step, found.layer, found.tensor, found.head) == (5, 0, Tensor.QUERIES, 3)
    assert found.row is None
    assert largest_difference(planted(), steps=[2, 3]).step == 2


def test_a_nan_in_a_lane_ranks_above_every_difference():
    trace = planted()
    compared = trace.source.lane_steps["recomputed", 3]
    compared.max_abs[2, Tensor.OUTPUT, 0] = np.nan
    found = largest_difference(trace)
    assert (found.step, found.verdict) == (3, Verdict.NOT_FINITE)
    assert worst(trace, 3) is Verdict.NOT_FINITE


def test_the_recorded_rows_explain_the_recorded_output():
    trace = synthetic_trace()
    for number in trace.numbers:
        found = self_check(trace, number, 2)
        assert found.passed
        assert found.recorded_error == 1e-7
        assert self_check(trace, number, 2, head=3, query=-1).passed


def test_an_output_that_the_rows_do_not_explain_fails():
    trace = synthetic_trace()
    output = trace.source.site_tensors[4, 2, Tensor.OUTPUT]
    output[0, 1] *= 1.01
    assert not self_check(trace, 4, 2).passed
    assert self_check(trace, 4, 2, head=0).passed
    assert not self_check(trace, 4, 2, head=1).passed


def test_nothing_is_checked_without_an_output():
    trace = synthetic_trace()
    del trace.source.site_tensors[4, 2, Tensor.OUTPUT]
    assert self_check(trace, 4, 2) is None


def test_an_output_of_nan_never_passes():
    trace = synthetic_trace()
    trace.source.site_tensors[4, 2, Tensor.OUTPUT][:] = np.nan
    assert not self_check(trace, 4, 2).passed


def test_statistics_by_hand():
    found = statistics(np.array([1.0, 3.0, np.nan, np.inf, -np.inf, 5.0], np.float32))
    assert (found.count, found.nan, found.infinite) == (6, 1, 2)
    assert (found.minimum, found.maximum, found.mean) == (1, 5, 3)
    assert found.std == pytest.approx(np.sqrt(8 / 3))
    empty = statistics(np.array([np.nan]))
    assert empty.nan == 1
    assert np.isnan(empty.mean)


def test_statistics_of_halves_do_not_overflow():
    assert statistics(np.full(4, 60000, np.float16)).mean == 60000


def test_a_lane_without_its_rows_still_has_its_verdict():
    trace = planted()
    compared = trace.source.lane_steps["recomputed", 2]
    trace.source.lane_steps["recomputed", 2] = replace(compared, passes=())
    assert first_parting(trace).step == 2
