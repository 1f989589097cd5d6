"""Rows of one head in any lane, however the lane keeps them."""

import numpy as np
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.heads.tensors import head_rows
from kvtrace.analysis.lanes.compare import Verdict, compare
from kvtrace.trace import Tensor
from kvtrace.trace.reference import at_places, places_of


def with_pass(shift=0, padding=0):
    """A trace whose recomputed lane is one pass; its positions start `padding` before 0."""
    trace = synthetic_trace(Shape(layers=2, prompt=4, decode=3))
    source, total = trace.source, 7
    for key in [key for key in source.pass_tensors if key[2] in (Tensor.KEYS, Tensor.VALUES)]:
        rows = source.pass_tensors[key][0]
        pad = np.full((rows.shape[0], padding, rows.shape[2]), 9, np.float32)
        rows = np.concatenate([pad, rows], axis=1)[None]
        source.pass_tensors[key] = rows + np.float32(shift)
    rng = np.random.default_rng(1)
    for site in range(2):
        for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            rows = rng.standard_normal((1, 4, total + padding, 8)).astype(np.float32)
            source.pass_tensors["recomputed", 0, tensor, site] = rows
    positions = tuple(range(-padding, total))
    source.passes["recomputed", 0] = replace(
        trace.step(0), tokens=((0,) * len(positions),), positions=(positions,)
    )
    for number in trace.numbers:
        first = padding + (0 if number == 0 else 3 + number)
        key = "recomputed", number
        source.lane_steps[key] = replace(source.lane_steps[key], passes=((0, 0, first),))
    return trace


def test_cached_rows_are_those_the_attention_was_given():
    trace = synthetic_trace(Shape(window=4))
    rows = head_rows(trace, 5, 1, Tensor.KEYS, 3)
    assert np.array_equal(rows, trace.cache(5, 1).keys[1])
    assert np.array_equal(head_rows(trace, 5, 1, Tensor.OUTPUT, 3), trace.output(5, 1)[3])


def test_rows_of_a_pass_are_found_by_their_position():
    trace = with_pass()
    rows = head_rows(trace, 2, 1, Tensor.VALUES, 0, lane="recomputed")
    assert rows.shape == (6, 8)
    assert compare(trace, 2, 1, Tensor.VALUES, 0).verdict is Verdict.ROUNDING
    kept = trace.source.pass_tensors["recomputed", 0, Tensor.QUERIES, 1]
    assert np.array_equal(
        head_rows(trace, 2, 1, Tensor.QUERIES, 2, lane="recomputed"), kept[0, 2, 5:6]
    )


def test_padding_moves_places_but_not_positions():
    trace = with_pass(padding=2)
    assert compare(trace, 2, 1, Tensor.KEYS, 3).verdict is Verdict.ROUNDING


def test_a_row_that_the_pass_has_not_is_nan():
    positions = np.array([0, 1, 2, 4])
    places = places_of(positions, np.array([2, 3, 4, -1]))
    assert places.tolist() == [2, -1, 3, -1]
    rows = at_places(np.arange(8, dtype=np.float32).reshape(4, 2), places)
    assert np.isnan(rows[[1, 3]]).all()
    assert rows[[0, 2]].tolist() == [[4, 5], [6, 7]]


def test_a_lane_without_rows_gives_none():
    trace = with_pass()
    trace.source.pass_tensors.clear()
    for tensor in Tensor:
        assert head_rows(trace, 2, 1, tensor, 0, lane="recomputed") is None
