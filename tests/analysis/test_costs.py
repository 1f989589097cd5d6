"""Costs in both lanes, and memory, by hand."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace, without_attention
from kvtrace.analysis.cost.costs import Logits, step_cost, why
from kvtrace.analysis.cost.history import history, so_far
from kvtrace.analysis.cost.memory import cache_memory
from kvtrace.analysis.summary import summary
from kvtrace.trace import CacheLayer, Cost, Flops, Trace


def with_cost(cost, **fields):
    trace = synthetic_trace()
    trace.source.steps[3] = replace(trace.step(3), cost=cost, **fields)
    return trace


def test_each_convention_counts_its_own_logits():
    cached = Flops(qkv=10, scores=1, mix=1, output=4, mlp=20, head=5, head_last=5, head_all=5)
    whole = Flops(qkv=80, scores=8, mix=8, output=32, mlp=160, head=40, head_last=5, head_all=40)
    trace = with_cost(Cost(cached, whole))
    assert step_cost(trace, 3).recomputed.flops == 288 + 40
    assert step_cost(trace, 3, Logits.LAST).recomputed.flops == 288 + 5
    assert step_cost(trace, 3, Logits.ALL).recomputed.flops == 288 + 40
    assert step_cost(trace, 3).cached.flops == 41
    assert [part.name for part in step_cost(trace, 3).parts][-1] == "head"
    assert sum(part.cached for part in step_cost(trace, 3).parts) == 41


def test_flops_that_were_extrapolated_are_called_an_estimate():
    cost = Cost(Flops(qkv=2_000_000), Flops(qkv=20_000_000))
    sure, unsure = with_cost(cost), with_cost(cost)
    said = "FLOPs of layers.0.conv are extrapolated from single steps."
    unsure.source.meta = replace(unsure.meta, not_recorded=(said,))
    assert [step_cost(one, 3).estimated for one in (sure, unsure)] == [False, True]
    assert "2.00 MFLOP instead of 20.0," in summary(sure, 3).sentence
    assert "2.00 MFLOP instead of about 20.0," in summary(unsure, 3).sentence


def test_bytes_are_weights_once_and_rows_read_and_written():
    found = step_cost(with_cost(Cost(Flops(qkv=500), Flops(qkv=900), 100, 30, 20, 50)), 3)
    assert (found.cached.bytes_read, found.cached.bytes_written) == (130, 20)
    assert (found.recomputed.bytes_read, found.recomputed.bytes_written) == (100, 0)
    assert found.cached.intensity == 500 / 150
    assert found.flops_ratio == 1.8


def test_a_recurrent_state_is_read_and_written_whole_by_every_step_after_the_first():
    trace = with_cost(Cost(Flops(qkv=500), Flops(qkv=900), 100, 30, 20, 50))
    meta = trace.meta
    state = replace(meta.cache_layers[0], index=len(meta.cache_layers), kind="state", state_bytes=7)
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, state))
    later, first = step_cost(trace, 3).cached, step_cost(trace, 0)
    assert (later.bytes_read, later.bytes_written) == (137, 27)
    assert first.cached.bytes_read == first.weight_bytes + trace.step(0).cost.cache_read_bytes


def test_why_says_memory_when_time_saved_is_less_than_flops_saved():
    trace = with_cost(Cost(Flops(qkv=1000), Flops(qkv=20_000), 2000, 96, 32, 128, 2000))
    said = why(step_cost(trace, 3))
    assert said.startswith("20.0× fewer FLOPs, 1.4× less time: both read the same 1.95 KiB")
    assert "0.5 FLOP per byte instead of 10" in said
    assert "waits for memory" in said


@pytest.mark.parametrize(
    ("uncached", "said"),
    [
        (0, "both read at least 1.95 KiB of weights once, the cached"),
        (2090, "both read about 1.95 KiB of weights once, the cached"),
        (4096, "1.95 KiB of weights are read instead of up to 4.00 KiB, the cached"),
    ],
)
def test_weights_that_only_a_longer_forward_reads_are_not_called_the_same(uncached, said):
    cost = Cost(Flops(qkv=1000), Flops(qkv=20_000), 2000, 96, 32, 128, uncached)
    found = step_cost(with_cost(cost), 3)
    assert said in why(found)
    assert found.recomputed.bytes_read == (uncached or 2000)


def test_why_admits_a_slower_cache_and_missing_times():
    slow = with_cost(Cost(Flops(qkv=1000), Flops(qkv=2000), 2000), elapsed_ns=2_600_000)
    assert "yet 2.0× more time" in why(step_cost(slow, 3))
    lane = slow.source.lane_steps["recomputed", 3]
    slow.source.lane_steps["recomputed", 3] = replace(lane, elapsed_ns=None)
    assert "was not measured" in why(step_cost(slow, 3))
    assert step_cost(slow, 3).time_ratio is None


def test_why_calls_times_that_hardly_differ_the_same():
    even = with_cost(Cost(Flops(qkv=1000), Flops(qkv=2000), 2000), elapsed_ns=1_310_000)
    assert why(step_cost(even, 3)).startswith("2.00× fewer FLOPs, in about the same time: both")


def test_why_tells_a_step_that_was_held_up_from_what_such_steps_usually_take():
    cost = Cost(Flops(qkv=1000), Flops(qkv=2000), 2000)
    slow = with_cost(cost, elapsed_ns=2_700_000)  # the other five: 0.9 ms
    said = "more time (it took 3.00× what such a step of this run usually does): both"
    assert said in why(step_cost(slow, 3))
    assert "usually" not in why(step_cost(with_cost(cost, elapsed_ns=1_700_000), 3))
    few = synthetic_trace(Shape(decode=2))
    few.source.steps[1] = replace(few.step(1), elapsed_ns=9_000_000)
    assert step_cost(few, 1).usual_ns is None
    assert "usually" not in why(step_cost(few, 1))


def test_why_says_when_nothing_is_saved_or_counted():
    assert "Nothing is saved yet" in why(step_cost(synthetic_trace(), 0))
    first = step_cost(synthetic_trace(), 0)
    assert "first pass" not in why(first)
    slow = replace(first, cached=replace(first.cached, elapsed_ns=4 * first.recomputed.elapsed_ns))
    assert "That it took 4.0× the time is not the cache's doing" in why(slow)
    assert "not counted" in why(step_cost(with_cost(Cost()), 3))
    uncached = replace(step_cost(synthetic_trace(), 0), cache_bytes=0)
    assert "Nothing is saved: no row is kept" in why(uncached)


def test_why_does_not_say_that_a_model_keeps_nothing_whose_attention_was_not_seen():
    said = why(step_cost(without_attention(), 3))
    assert said.startswith("No attention was seen: what a step goes on from is not known")


def test_sums_so_far_add_up_every_step_once():
    trace = synthetic_trace()
    past = history(trace)
    found = so_far(past, 2)
    costs = [trace.step(number).cost for number in (0, 1, 2)]
    assert found.steps == 3
    assert found.cached_flops == sum(cost.cached.total for cost in costs)
    assert found.recomputed_flops == sum(cost.recomputed.total for cost in costs)
    assert found.elapsed_ns == 1_400_000 + 2 * 900_000
    assert found.lane_ns == 3 * 1_300_000


def test_a_time_that_is_missing_for_one_step_is_missing_in_the_sum():
    trace = synthetic_trace()
    del trace.source.lane_steps["recomputed", 1]
    assert so_far(history(trace), 0).lane_ns == 1_300_000
    assert so_far(history(trace), 2).lane_ns is None


def test_a_grown_trace_keeps_the_times_already_read():
    trace = synthetic_trace()
    before = history(trace)
    trace.source.lane_steps.clear()
    assert np.array_equal(history(trace, before=before).lane_ns, before.lane_ns)


def test_the_times_of_a_long_run_are_read_little_by_little():
    trace = synthetic_trace()
    whole = history(trace)
    past = history(trace, at_most=2)
    assert past.looked == 2
    assert past.lane_ns.tolist() == [*whole.lane_ns[:2].tolist(), *[-1] * (len(trace) - 2)]
    late = trace.source.lane_steps.pop(("recomputed", 2))
    past = history(trace, before=past, at_most=2)
    assert (past.looked, past.lane_ns[2]) == (4, -1)
    trace.source.lane_steps["recomputed", 2] = late
    past = history(trace, before=past, at_most=len(trace))
    assert past.looked == len(trace)
    assert np.array_equal(past.lane_ns, whole.lane_ns)


def test_memory_of_grouped_heads_between_one_and_all():
    # 11 rows × (8 + 8) features × 4 bytes: 704 a kv head and layer; 3 layers
    found = cache_memory(synthetic_trace(Shape(heads=4, kv_heads=2)), 6)
    assert found.held_bytes == 704 * 2 * 3 == found.measured_bytes
    assert found.mha == 704 * 4 * 3
    assert found.mqa == 704 * 3
    assert found.token_bytes == 64 * 2 * 3
    assert found.unshared == found.unwindowed == found.held_bytes


def test_memory_with_a_window_says_what_it_would_be_without():
    found = cache_memory(synthetic_trace(Shape(window=4)), 6)
    assert [layer.rows for layer in found.layers] == [3, 3, 3]
    assert found.held_bytes == 3 * 64 * 2 * 3
    assert found.unwindowed == 11 * 64 * 2 * 3


def test_shared_rows_are_counted_once_and_the_saving_is_shown():
    trace = synthetic_trace()
    meta = trace.source.meta
    shared = replace(meta.sites[2], reads=1, source="shared", shared_from=1)
    trace.source.meta = replace(
        meta, sites=(*meta.sites[:2], shared), cache_layers=meta.cache_layers[:2]
    )
    for number, step in trace.source.steps.items():
        group = replace(step.caches[0], layers=(0, 1))
        trace.source.steps[number] = replace(step, caches=(group,))
    found = cache_memory(Trace(trace.source), 6)
    assert found.held_bytes == 704 * 2 * 2
    assert found.unshared == 704 * 2 * 3


def test_latents_are_compared_with_the_heads_expanded_from_them():
    trace = synthetic_trace()
    meta = trace.source.meta
    layers = tuple(replace(one, kind="derived", layer=-1) for one in meta.cache_layers)
    latents = tuple(
        CacheLayer(3 + i, i, "latent", num_kv_heads=1, key_dim=4, value_dim=2) for i in range(3)
    )
    trace.source.meta = replace(meta, cache_layers=layers + latents)
    step = trace.step(6)
    group = step.caches[0]
    trace.source.steps[6] = replace(step, caches=(group, replace(group, layers=(3, 4, 5))))
    found = cache_memory(Trace(trace.source), 6)
    assert found.held_bytes == 11 * 6 * 4 * 3
    assert found.mha == 704 * 4 * 3


def test_a_recurrent_state_is_constant_and_no_token_adds_to_it():
    trace = synthetic_trace()
    meta = trace.source.meta
    state = CacheLayer(3, 3, "state", 0, 0, 0, state_bytes=512)
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, state))
    found = cache_memory(Trace(trace.source), 6)
    assert found.state_bytes == 512
    assert found.held_bytes == 704 * 2 * 3 + 512
    assert found.token_bytes == 384


def test_halves_take_half():
    trace = synthetic_trace()
    meta = trace.source.meta
    trace.source.meta = replace(
        meta, cache_layers=tuple(replace(one, dtype="bfloat16") for one in meta.cache_layers)
    )
    assert cache_memory(trace, 6).held_bytes == 704 * 3
