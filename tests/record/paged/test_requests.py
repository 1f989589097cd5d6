"""Each request of a continuous batch is a sequence of its own, with the rows it attended to."""

from __future__ import annotations

import numpy as np
import pytest

import kvtrace
from builders.engines import alone, batched, engine_model, live_pool, settings
from kvtrace.analysis.checks.verdict import check

PROMPTS = [[7, 3, 21, 9, 30], [5, 40, 11], list(range(3, 30))]
NEW = 5
BEYOND_ROUNDING = 2e-5


@pytest.fixture(scope="module", params=["llama", "eager", "mistral", "gemma3_text"])
def run(request, tmp_path_factory):
    """Three requests, two of them at a time, the long prompt in chunks; all with the live pool."""
    name = {"eager": "llama"}.get(request.param, request.param)
    implementation = "eager" if request.param == "eager" else "sdpa"
    model = engine_model(name, attn_implementation=implementation)

    def engine():
        return settings(max_batch_tokens=12, max_requests_per_batch=2)

    expected = batched(model, PROMPTS, NEW, engine())
    path = tmp_path_factory.mktemp("paged") / "run.kvt"
    with live_pool() as pool, kvtrace.record(model, path):
        found = batched(model, PROMPTS, NEW, engine())
    assert list(found.values()) == list(expected.values())
    return model, kvtrace.open(path), pool, found


def assert_equal_to_the_pool(trace, pool):
    """What each step attended to is what the blocks of its request held, bit by bit."""
    for step in trace:
        live = pool.rows[step.packed.request, step.positions[0][-1] + 1]
        for site in trace.meta.sites:
            keys, values, slots = kept(trace, step, site)
            expected_keys, expected_values, expected_slots = live[site.layer]
            assert np.array_equal(keys, expected_keys.transpose(0, 1).numpy())
            assert np.array_equal(values, expected_values.transpose(0, 1).numpy())
            assert slots == expected_slots


def of_request(trace):
    """Request to its steps."""
    found = {}
    for step in trace:
        found.setdefault(step.packed.request, []).append(step)
    return found


def test_nothing_is_said_to_be_left_out(run):
    _, trace, _, _ = run
    assert not any("continuously" in text for text in trace.meta.not_recorded)
    assert trace.meta.unseen == ()


def test_each_request_is_one_chain_of_steps_from_its_prompt_to_its_last_token(run):
    _, trace, _, found = run
    for prompt, (name, steps) in zip(PROMPTS, of_request(trace).items(), strict=True):
        fed = [token for step in steps for token in step.tokens[0]]
        assert fed == prompt + found[name][:-1]
        assert [place for step in steps for place in step.positions[0]] == list(range(len(fed)))
        assert [step.parent for step in steps] == [None, *(one.number for one in steps[:-1])]
        chosen = [step.chosen[0] for step in steps if step.chosen[0] is not None]
        assert chosen == found[name]
        phases = [step.phase for step in steps]
        assert phases == sorted(phases, reverse=True)
        assert phases.count("decode") == NEW - 1


def test_a_long_prompt_is_recorded_in_the_chunks_it_was_read_in(run):
    _, trace, _, _ = run
    longest = list(of_request(trace).values())[2]
    chunks = [step.new for step in longest if step.phase == "prefill"]
    assert sum(chunks) == 27
    assert len(chunks) > 2
    assert all(step.chosen == (None,) for step in longest[: len(chunks) - 1])


def test_requests_share_forwards_and_each_joins_and_leaves_at_its_own(run):
    _, trace, _, _ = run
    spans = {}
    for step in trace:
        spans.setdefault(step.packed.request, []).append(step.packed.forward)
    first, second, third = spans.values()
    assert first[0] == second[0] == 0
    assert third[0] > 0
    assert third[-1] > max(first[-1], second[-1])
    for span in spans.values():
        assert span == list(range(span[0], span[0] + len(span)))
    forwards = {}
    for step in trace:
        forwards.setdefault(step.packed.forward, []).append(step)
    for steps in forwards.values():
        assert [step.packed.place for step in steps] == list(range(len(steps)))
        assert {step.packed.of for step in steps} == {len(steps)}
        assert sum(step.elapsed_ns for step in steps) == steps[0].packed.elapsed_ns


def kept(trace, step, site):
    """Cells, keys, values and slots of what the cache holds for a request after a step."""
    view = trace.cache(step.number, site.index)
    group = trace.cache_step(step.number, site.index)
    cells = [run.cell + i for run in group.kept[0] for i in range(run.count)]
    rows = [view.cells.tolist().index(cell) for cell in cells]
    return view.keys[:, rows], view.values[:, rows], view.pool[rows].tolist()


def test_the_cache_of_each_request_is_what_its_blocks_hold_bit_by_bit(run):
    _, trace, pool, _ = run
    assert_equal_to_the_pool(trace, pool)


def test_the_pool_and_its_blocks_are_named(run):
    _, trace, _, _ = run
    for layer in trace.meta.cache_layers:
        assert layer.block_slots == 4
        assert layer.capacity % 4 == 0
        assert layer.capacity >= 32


def test_what_was_recorded_explains_the_output(run):
    _, trace, _, _ = run
    for step in trace:
        for group in step.sites:
            for error, scale in zip(group.check_error, group.check_scale, strict=True):
                assert error is None or error <= 1e-5 * scale


def test_a_request_of_its_own_gives_the_same_within_rounding(run):
    model, trace, _, found = run
    for prompt, (name, steps) in zip(PROMPTS, of_request(trace).items(), strict=True):
        tokens, cache = alone(model, prompt, NEW)
        assert tokens == found[name]
        last = steps[-1]
        for site in trace.meta.sites:
            mine, _, _ = kept(trace, last, site)
            theirs = cache.layers[site.layer].keys[0].cpu().numpy()
            rows = min(mine.shape[1], theirs.shape[1])
            apart = np.abs(mine[:, -rows:] - theirs[:, -rows:]).max()
            assert apart <= BEYOND_ROUNDING * np.abs(theirs).max()


def test_recomputed_alone_each_request_is_equal_within_rounding(run):
    _, trace, _, _ = run
    assert all(trace.compared(step.number) is not None for step in trace)
    report = check(trace)
    assert report.ok, report


def test_a_step_costs_what_it_costs_a_request_of_its_own(run, tmp_path):
    model, trace, _, _ = run
    with kvtrace.record(model, tmp_path / "alone.kvt", recompute="off"):
        alone(model, PROMPTS[0], NEW)
    packed = [step for step in trace if step.packed.request == "req_0"]
    for mine, theirs in zip(packed, kvtrace.open(tmp_path / "alone.kvt"), strict=True):
        assert mine.cost.cached == theirs.cost.cached
        assert mine.cost.recomputed == theirs.cost.recomputed
        assert mine.cost.weight_bytes == theirs.cost.weight_bytes
