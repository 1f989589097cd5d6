"""Copies of caches with windows, used once the first cache has let rows go."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks import check

PROMPT = 9


def fed(model, cache, *tokens, start=PROMPT):
    """One token after the other."""
    for place, token in enumerate(tokens, start):
        model(
            torch.tensor([[token]]),
            past_key_values=cache,
            position_ids=torch.tensor([[place]]),
        )


def begun(model, cache):
    model(IDS[:, :PROMPT], past_key_values=cache)
    return cache


def dynamic(model):
    return DynamicCache(config=model.config)


def static(model):
    return StaticCache(config=model.config, max_cache_len=24)


@pytest.mark.parametrize("kind", ["ministral", "gemma3_text"])
@pytest.mark.parametrize("cache_of", [dynamic, static])
@pytest.mark.parametrize("ahead", [1, 3, 6])
def test_a_copy_goes_on_where_it_was_made_however_far_the_first_went(
    kind, cache_of, ahead, tmp_path
):
    model = ready(tiny_model(kind))
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        first = begun(model, cache_of(model))
        second = copy.deepcopy(first)
        fed(model, first, *range(30, 30 + ahead))
        fed(model, second, 50, 51)
        fed(model, first, 70, start=PROMPT + ahead)
    trace = kvtrace.open(tmp_path / "a.kvt")
    second_step = ahead + 1
    assert trace.step(second_step).parent == 0
    assert trace.step(second_step + 1).parent == second_step
    assert trace.step(second_step + 2).parent == ahead
    assert check(trace).verdict == "equal within rounding"


def test_a_copy_of_a_copy_goes_on_where_the_first_one_was(tmp_path):
    model = ready(tiny_model("ministral"))
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        first = begun(model, DynamicCache(config=model.config))
        second = copy.deepcopy(first)
        fed(model, first, 30, 31, 32, 33, 34, 35)
        third = copy.deepcopy(second)
        fed(model, second, 50, 51, 52)
        fed(model, third, 60)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.step(one).parent for one in (7, 8, 9, 10)] == [0, 7, 8, 0]
    assert not check(trace).findings


def test_the_rows_of_the_copy_are_those_that_its_attention_was_given(tmp_path):
    model = ready(tiny_model("ministral"))
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        first = begun(model, DynamicCache(config=model.config))
        second = copy.deepcopy(first)
        fed(model, first, 30, 31, 32)
        fed(model, second, 50)
    view = kvtrace.open(tmp_path / "a.kvt").cache(4, 0, 0)
    assert view.positions.tolist() == [*range(PROMPT - view.slots.size + 1, PROMPT + 1)]
    kept = second.layers[0].keys[0].numpy()
    assert (view.keys[:, -kept.shape[1] :] == kept).all()
