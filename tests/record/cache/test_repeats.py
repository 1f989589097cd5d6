"""A step that is run again with the same token on the same cache, as a loop that measures does."""

import numpy as np
import torch

import kvtrace
from builders.custom_drives import ids
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.cache.own.repeats import Repeats
from kvtrace_fixtures.custom.gqa_interleave import build


def recorded(path, run):
    model = build().eval()
    with kvtrace.record(model, path), torch.no_grad():
        run(model, model(ids(6)).past_key_values)
    return kvtrace.open(path)


def places(trace):
    return [[step.positions[0][0], step.caches[0].length_after] for step in trace]


def test_a_step_that_is_run_again_stays_at_its_place(tmp_path):
    def run(model, past):
        for _ in range(3):
            now = model(torch.tensor([[11]]), past).past_key_values
        model(torch.tensor([[4]]), now)

    trace = recorded(tmp_path / "a.kvt", run)
    assert places(trace) == [[0, 6], [6, 7], [6, 7], [6, 7], [7, 8]]
    assert np.nanmax(trace.compared(3).relative) < 1e-5
    assert np.nanmax(trace.compared(4).relative) < 1e-5
    assert check(trace).verdict == "equal within rounding"


def test_a_token_that_comes_twice_has_two_places(tmp_path):
    def run(model, past):
        past = model(torch.tensor([[11]]), past).past_key_values
        model(torch.tensor([[11]]), past)

    assert places(recorded(tmp_path / "a.kvt", run)) == [[0, 6], [6, 7], [7, 8]]


def test_a_cache_that_was_written_to_is_not_the_one_before():
    repeats, past, tokens = Repeats(), ((torch.zeros(2), torch.zeros(2)),), ids(1)
    assert not repeats.same({"past": past}, tokens, None)
    assert repeats.same({"past": past}, tokens, tokens)
    assert not repeats.same({"past": past}, tokens, tokens + 1)
    past[0][0].add_(1)
    assert not repeats.same({"past": past}, tokens, tokens)


def test_what_has_no_cache_among_its_arguments_repeats_nothing():
    repeats, tokens = Repeats(), ids(1)
    assert not repeats.same({"idx": tokens}, tokens, None)
    assert not repeats.same({"idx": tokens}, tokens, tokens)


def test_a_container_that_holds_itself_is_looked_through_once():
    repeats, tokens, state = Repeats(), ids(1), {}
    state["self"] = state
    assert not repeats.same({"state": state}, tokens, None)
    assert not repeats.same({"state": state}, tokens, tokens)
