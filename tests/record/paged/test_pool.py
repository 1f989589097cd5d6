"""Requests that share blocks, lose them and get them again are followed by where their rows lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kvtrace
from builders.engines import after_each_forward, batched, engine_model, live_pool, settings
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.paged import batch
from record.paged.test_requests import assert_equal_to_the_pool, of_request

SHARED = list(range(3, 15))


@pytest.fixture(scope="module")
def model():
    return engine_model("llama")


def recorded(model, path, prompts, **options):
    """A run, and a trace of one that is equal."""
    engine = {name: options.pop(name) for name in list(options) if name in ENGINE}
    expected = batched(model, prompts, engine=settings(**engine), **options)
    with live_pool() as pool, kvtrace.record(model, path):
        found = batched(model, prompts, engine=settings(**engine), **options)
    assert list(found.values()) == list(expected.values())
    return kvtrace.open(path), pool


ENGINE = ("num_blocks", "max_requests_per_batch", "max_batch_tokens", "allow_block_sharing")


def test_a_prompt_that_begins_like_another_goes_on_with_its_rows(model, tmp_path):
    prompts = [[*SHARED, 40, 41], [*SHARED, 50, 51]]
    trace, pool = recorded(model, tmp_path / "a.kvt", prompts, max_requests_per_batch=1)
    assert_equal_to_the_pool(trace, pool)
    first, second = of_request(trace).values()
    begun = second[0]
    assert begun.positions[0] == (12, 13)
    assert begun.parent == first[0].number
    group = begun.caches[0]
    assert group.rows == 2
    before, after = trace.cache(first[0].number, 0), trace.cache(begun.number, 0)
    assert before.cells[:12].tolist() == after.cells[:12].tolist()
    assert before.pool[:12].tolist() == after.pool[:12].tolist()
    crop = begun.events[0]
    assert (crop.kind, crop.lengths_before[0], crop.lengths_after[0]) == ("crop", 14, 12)
    assert [step.parent for step in second[1:]] == [step.number for step in second[:-1]]
    assert check(trace).ok


def test_equal_blocks_of_two_requests_become_one_and_are_told_as_what_was_read(model, tmp_path):
    """Both compute the same prefix; then one of the two blocks is given up."""
    prompts = [[*SHARED, 40, 41], [*SHARED, 50, 51]]
    trace, pool = recorded(model, tmp_path / "a.kvt", prompts)
    assert_equal_to_the_pool(trace, pool)
    first, second = of_request(trace).values()
    assert second[0].positions[0][0] == 0
    later, other = trace.cache(second[2].number, 0), trace.cache(first[2].number, 0)
    assert later.cells[:12].tolist() == other.cells[:12].tolist()
    assert all(group.rewritten == 0 for step in trace for group in step.caches)
    assert [step.parent for step in second[1:]] == [step.number for step in second[:-1]]
    assert check(trace).ok


def test_without_sharing_nobody_reads_the_rows_of_another(model, tmp_path):
    prompts = [[*SHARED, 40, 41], [*SHARED, 50, 51]]
    trace, pool = recorded(model, tmp_path / "a.kvt", prompts, allow_block_sharing=False)
    assert_equal_to_the_pool(trace, pool)
    first, second = of_request(trace).values()
    mine = set(trace.cache(first[-1].number, 0).cells.tolist())
    assert mine.isdisjoint(trace.cache(second[-1].number, 0).cells.tolist())


def test_a_request_that_is_thrown_out_begins_again_as_a_new_sequence(model, tmp_path):
    prompts = [list(range(3, 14)), list(range(20, 31)), list(range(40, 51))]
    trace, pool = recorded(
        model, tmp_path / "a.kvt", prompts, new=12, num_blocks=10, allow_block_sharing=False
    )
    assert_equal_to_the_pool(trace, pool)
    starts = [step for step in trace if step.parent is None]
    assert len(starts) > 3
    again = starts[3]
    earlier = [
        step for step in of_request(trace)[again.packed.request] if step.number < again.number
    ]
    fed = [token for step in earlier for token in step.tokens[0]]
    assert list(again.tokens[0][: len(fed)]) == fed
    assert check(trace).ok


def test_samples_of_one_prompt_part_after_it(model, tmp_path):
    path = tmp_path / "a.kvt"
    with live_pool() as pool, kvtrace.record(model, path):
        batched(model, [[*SHARED, 40]], num_return_sequences=3, do_sample=True)
    trace = kvtrace.open(path)
    assert_equal_to_the_pool(trace, pool)
    requests = of_request(trace)
    assert len(requests) == 3
    parent, *children = requests.values()
    assert parent[0].tokens[0] == tuple(SHARED)
    for child in children:
        assert child[0].parent == parent[0].number
        assert child[0].positions[0] == (12,)
        assert child[0].caches[0].rows == 1
        assert child[0].caches[0].first_cell > 12
    assert check(trace).ok


def test_what_somebody_else_wrote_to_the_pool_is_stored_as_it_was_read(model, tmp_path):
    forwards = []

    def meddle(processor):
        forwards.append(processor)
        if len(forwards) == 2:
            allocator = processor.cache.layer_to_allocator[0]
            block = allocator.block_table["req_0"][0]
            keys, _ = allocator._kv_token_views[0]
            keys[block * allocator.block_physical_stride] *= 2

    path = tmp_path / "a.kvt"
    with (
        after_each_forward(meddle),
        live_pool() as pool,
        kvtrace.record(model, path, recompute="off"),
    ):
        batched(model, [[7, 3, 21, 9, 30]])
    trace = kvtrace.open(path)
    assert_equal_to_the_pool(trace, pool)
    assert [step.caches[0].rewritten for step in trace] == [0, 0, 6, 0, 0]
    before, after = trace.cache(1, 0), trace.cache(2, 0)
    assert np.array_equal(after.keys[:, 0], 2 * before.keys[:, 0])


def test_a_batch_is_read_when_its_device_has_it(monkeypatch):
    """Engines write it beside the stream that runs the model: seen on a GPU, now and then."""
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    batch._written(torch.device("cpu"))
    assert waited == []
    batch._written(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
