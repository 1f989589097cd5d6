"""The trace floor: rows by address, derived weights, tokens chosen."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.errors import MissingError
from kvtrace.trace import CACHED, Mask, Tensor
from kvtrace.trace.dtypes import widen
from kvtrace.trace.weights import mix


def test_derived_weights_times_values_equal_the_recorded_output():
    trace = synthetic_trace()
    for number in trace.numbers:
        weights = trace.weights(number, 1).weights
        output = mix(weights, trace.cache(number, 1).values)
        assert np.allclose(output, trace.output(number, 1), atol=1e-6)


def test_one_heads_weights_equal_its_row_of_all_heads():
    trace = synthetic_trace()
    every = trace.weights(3, 2).weights
    for head in range(4):
        assert np.allclose(trace.weights(3, 2, head).weights[0], every[head], atol=1e-6)


def test_a_window_evicts_and_the_cache_shows_only_what_is_visible():
    trace = synthetic_trace(Shape(window=4, decode=6))
    view = trace.cache(5, 0)
    assert view.positions.tolist() == [6, 7, 8, 9]
    assert view.slots.tolist() == [0, 1, 2, 3]


def test_the_chosen_token_is_the_next_steps_input():
    trace = synthetic_trace()
    assert trace.chosen(2) == trace.step(3).tokens[0][0]


def with_parents(parents):
    trace = synthetic_trace()
    for number, step in trace.source.steps.items():
        parent = parents.get(number, step.parent)
        trace.source.steps[number] = replace(step, parent=parent, chosen=(None,))
    return trace


def test_of_texts_that_take_turns_each_goes_on_with_its_own_token():
    trace = with_parents({1: None, 2: 0, 3: 1, 4: 2, 5: 3, 6: 4})
    for number, successor in ((0, 2), (1, 3), (2, 4), (3, 5), (4, 6)):
        assert trace.chosen(number) == trace.step(successor).tokens[0][0]
    assert trace.chosen(5) is trace.chosen(6) is None


def test_of_later_ways_on_with_other_tokens_none_was_chosen():
    trace = with_parents({2: None, 3: 1, 4: 1})
    assert trace.step(3).tokens[0] != trace.step(4).tokens[0]
    assert trace.chosen(1) is None


def test_the_very_next_step_tells_the_token_whatever_goes_on_later():
    trace = with_parents({4: 1})
    assert trace.step(2).tokens[0] != trace.step(4).tokens[0]
    assert trace.chosen(1) == trace.step(2).tokens[0][0]


def test_rows_absent_from_a_lane_are_nan_and_never_zero():
    trace = synthetic_trace()
    trace.source.pass_tensors.pop(("recomputed", 0, Tensor.KEYS, 0))
    assert np.isnan(trace.cache(1, 0, lane="recomputed").keys).all()
    assert not np.isnan(trace.cache(1, 0, lane=CACHED).keys).any()


def test_an_unknown_step_or_layer_says_what_there_is():
    trace = synthetic_trace()
    with pytest.raises(MissingError, match="step 99"):
        trace.step(99)
    with pytest.raises(MissingError, match="0 to 2"):
        trace.site(3)


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("bfloat16", np.array([0x3F80, 0xC000], "<u2"), [1.0, -2.0]),
        ("float8_e4m3fn", np.array([0x38, 0x01, 0x7E], "u1"), [1.0, 2.0**-9, 448.0]),
        ("float8_e5m2", np.array([0x3C, 0x01, 0xFC], "u1"), [1.0, 2.0**-16, -np.inf]),
    ],
)
def test_small_floats_widen_to_their_exact_value(name, raw, value):
    assert widen(raw, name).tolist() == value


def test_mask_rules_are_what_their_docstring_says():
    table = Mask(offset=2, window=3, padding=(1,)).visible(0, 2, 4)
    assert table.astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]
    chunked = Mask(offset=2, chunk=2, origin=2).visible(0, 2, 4)
    assert chunked.astype(int).tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
