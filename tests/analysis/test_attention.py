"""Where heads look, against naive sums and numbers by hand."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.heads.attention import attention, entropy, top_rows
from kvtrace.analysis.heads.grid import Measure, divergence, grid, weight_measures
from kvtrace.trace import Tensor, Trace


def repeated(ids=(7, 8, 9, 7, 8), after=(9, 7, 8, 9, 7, 8)):
    """A trace whose tokens repeat, so that earlier occurrences exist."""
    trace = synthetic_trace()
    for number, step in trace.source.steps.items():
        tokens = (ids,) if number == 0 else ((after[number - 1],),)
        trace.source.steps[number] = replace(step, tokens=tokens)
    return trace


def test_weights_are_exact_and_sum_to_one():
    trace = synthetic_trace()
    for number in trace.numbers:
        found = attention(trace, number, 1, 3)
        assert np.array_equal(found.weights, trace.weights(number, 1, 3).weights[0, -1])
        assert found.weights.sum() + found.sink_share == pytest.approx(1, abs=1e-6)


def test_an_earlier_query_of_a_prefill_sees_only_what_is_before_it():
    found = attention(synthetic_trace(), 0, 0, 0, query=1)
    assert np.count_nonzero(found.weights) == 2
    assert found.seen.tolist() == [True, True, False, False, False]
    assert found.query_position == 1


def test_tokens_of_rows_are_those_that_came_in():
    trace = repeated()
    assert attention(trace, 3, 0, 0).tokens.tolist() == [7, 8, 9, 7, 8, 9, 7, 8]


def test_induction_is_the_weight_just_after_the_same_token():
    trace = repeated()
    found = attention(trace, 3, 0, 0)  # asks with 8 at position 7; 8 stood at 1 and 4
    assert (found.query_token, found.query_position) == (8, 7)
    assert found.induction == pytest.approx(float(found.weights[[2, 5]].sum()))
    assert found.same_token == pytest.approx(float(found.weights[[1, 4]].sum()))


def test_a_token_never_seen_before_has_no_induction():
    trace = repeated(after=(1, 2, 3, 4, 5, 6))
    assert attention(trace, 3, 0, 0).induction == 0


def test_rows_of_an_encoder_are_no_earlier_tokens_of_the_text():
    trace = repeated()
    meta = trace.source.meta
    crossing = replace(meta.sites[1], kind="cross")
    trace.source.meta = replace(meta, sites=(meta.sites[0], crossing, meta.sites[2]))
    found = attention(trace, 3, 1, 0)
    assert np.isnan([found.induction, found.same_token]).all()
    for measure in (Measure.INDUCTION, Measure.SAME_TOKEN, Measure.PREVIOUS):
        table = grid(trace, 3, measure)
        assert np.isnan(table[1]).all()
        assert not np.isnan(table[[0, 2]]).any()


def test_the_largest_weights_come_first_and_ties_in_order():
    weights = np.array([0.1, 0.4, 0.1, 0.3, 0.1], np.float32)
    assert top_rows(weights, 3) == [1, 3, 0]
    assert top_rows(weights, 99) == [1, 3, 0, 2, 4]
    assert top_rows(weights[:0], 3) == []


def test_rows_that_are_nan_come_last_and_do_not_hide_the_others():
    weights = np.array([np.nan, 0.2, 0.5], np.float32)
    assert top_rows(weights, 3) == [2, 1, 0]
    assert top_rows(weights, 2) == [2, 1]


def test_entropy_by_hand():
    assert entropy(np.array([0.5, 0.25, 0.25])) == 1.5
    assert entropy(np.array([0.0, 1.0])) == 0
    assert entropy(np.full(8, 0.125)) == 3
    assert np.isnan(entropy(np.zeros(3)))


def test_the_grid_measures_every_head_as_attention_does():
    trace = repeated()
    found = {one: grid(trace, 4, one) for one in Measure}
    for layer in range(3):
        for head in range(4):
            one = attention(trace, 4, layer, head)
            at = layer, head
            assert found[Measure.ENTROPY][at] == pytest.approx(one.entropy, abs=1e-5)
            assert found[Measure.STRONGEST][at] == pytest.approx(one.weights.max(), abs=1e-6)
            assert found[Measure.PREVIOUS][at] == pytest.approx(one.weights[-2], abs=1e-6)
            assert found[Measure.FIRST][at] == pytest.approx(one.weights[0], abs=1e-6)
            assert found[Measure.INDUCTION][at] == pytest.approx(one.induction, abs=1e-6)
            assert found[Measure.SINK][at] == 0
            queries = trace.queries(4, layer)[head, 0]
            assert found[Measure.QUERY_NORM][at] == pytest.approx(np.linalg.norm(queries), rel=1e-5)


def test_a_layer_with_fewer_heads_leaves_the_rest_of_its_row_empty():
    trace = synthetic_trace(Shape(heads=4, kv_heads=2))
    meta = trace.source.meta
    small = replace(meta.sites[1], num_heads=2)
    for number in trace.numbers:
        for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            key = (number, 1, tensor)
            trace.source.site_tensors[key] = trace.source.site_tensors[key][:, :2]
    trace.source.meta = replace(meta, sites=(meta.sites[0], small, meta.sites[2]))
    found = grid(Trace(trace.source), 4, Measure.ENTROPY)
    assert np.isnan(found[1, 2:]).all()
    assert np.isfinite(found[1, :2]).all()
    assert np.isfinite(found[0]).all()


def test_a_layer_that_did_not_attend_is_empty_not_zero():
    trace = synthetic_trace()
    step = trace.step(4)
    group = replace(step.sites[0], sites=(0, 2))
    trace.source.steps[4] = replace(
        step, sites=(group,), caches=(replace(step.caches[0], layers=(0, 2)),)
    )
    assert np.isnan(weight_measures(trace, 4, 1)[Measure.ENTROPY]).all()
    assert np.isnan(grid(trace, 4, Measure.ENTROPY)[1]).all()


def test_divergence_takes_the_worst_tensor_and_spreads_kv_heads_over_their_group():
    trace = synthetic_trace(Shape(heads=4, kv_heads=2), noise=0)
    compared = trace.source.lane_steps["recomputed", 4]
    compared.max_abs[1, Tensor.KEYS, 1] = 0.5
    compared.reference_max[1, Tensor.KEYS, 1] = 2.0
    found = divergence(trace, 4)
    assert found[1].tolist() == [0, 0, 0.25, 0.25]
    del trace.source.lane_steps["recomputed", 4]
    assert np.isnan(divergence(trace, 4)).all()
