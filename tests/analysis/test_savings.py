"""What sharing, grouped heads and windows save, by hand."""

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.cost.savings import further, savings

ROWS, ROW = 11, 2 * (8 + 8) * 4


def test_layers_that_share_rows_save_what_they_would_hold_themselves():
    trace = synthetic_trace(Shape(layers=2, heads=2, kv_heads=2))
    second = replace(trace.meta.sites[1], reads=0, source="shared", shared_from=0)
    trace.source.meta = replace(
        trace.meta,
        sites=(trace.meta.sites[0], second),
        cache_layers=trace.meta.cache_layers[:1],
    )
    for number, step in trace.source.steps.items():
        group = replace(step.caches[0], layers=(0,))
        trace.source.steps[number] = replace(step, caches=(group,))
    (found,) = savings(trace, 6)
    assert found.what == "if every layer had its own K and V"
    assert (found.held_bytes, found.otherwise_bytes) == (ROWS * ROW, 2 * ROWS * ROW)


def test_grouped_heads_save_the_kv_heads_they_do_without():
    (found,) = savings(synthetic_trace(Shape(layers=3, heads=6, kv_heads=2)), 6)
    assert found.what == "if every head had its own K and V"
    assert (found.held_bytes, found.otherwise_bytes) == (3 * ROWS * ROW, 9 * ROWS * ROW)


def test_a_window_saves_the_rows_that_left_it():
    (found,) = savings(synthetic_trace(Shape(layers=1, heads=2, kv_heads=2, window=4)), 6)
    assert found.what == "if every layer kept every row"
    assert (found.held_bytes, found.otherwise_bytes) == (3 * ROW, ROWS * ROW)


def test_a_cache_that_saves_nothing_says_nothing():
    assert savings(synthetic_trace(Shape(heads=2, kv_heads=2)), 6) == ()


def test_one_k_and_v_for_all_heads_would_hold_less():
    found = further(synthetic_trace(Shape(layers=3, heads=6, kv_heads=2)), 6)
    assert found[0].what == "if all heads shared one K and V"
    assert (found[0].held_bytes, found[0].otherwise_bytes) == (3 * ROWS * ROW, 3 * ROWS * ROW // 2)


def test_narrower_numbers_would_hold_less_and_states_stay_as_they_are():
    trace = synthetic_trace(Shape(layers=2, heads=4, kv_heads=1))
    rows = ROWS * ROW // 2
    assert [one.otherwise_bytes for one in further(trace, 6)] == [rows, rows // 2]
    half, state = trace.meta.cache_layers
    half = replace(half, dtype="bfloat16")
    state = replace(state, kind="state", state_bytes=100)
    trace.source.meta = replace(trace.meta, cache_layers=(half, state))
    (found,) = further(trace, 6)
    assert found.what == "if its rows had 8 bits, without scales"
    assert (found.held_bytes, found.otherwise_bytes) == (rows // 2 + 100, rows // 4 + 100)


def test_a_cache_of_one_kv_head_of_bytes_can_be_no_smaller():
    trace = synthetic_trace(Shape(layers=1, heads=4, kv_heads=1))
    (one,) = trace.meta.cache_layers
    trace.source.meta = replace(trace.meta, cache_layers=(replace(one, dtype="float8_e4m3fn"),))
    assert further(trace, 6) == ()


@pytest.mark.parametrize("value_dim", [6, 8])
def test_nobody_saw_what_heads_would_be_given_in_place_of_absorbed_latents(value_dim):
    trace = synthetic_trace(Shape(layers=1, heads=4, kv_heads=1))
    (one,) = trace.meta.cache_layers
    latent = replace(one, value_dim=value_dim, shared_dim=value_dim)
    trace.source.meta = replace(trace.meta, cache_layers=(latent,))
    assert savings(trace, 6) == ()
    assert [one.what for one in further(trace, 6)] == [
        "if its rows had 16 bits",
        "if its rows had 8 bits, without scales",
    ]
