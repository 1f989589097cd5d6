"""A wrapper is recorded, and what it calls in its place is recorded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import kvtrace
from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.seeing import SEEING
from builders.tiny_models import tiny_model
from builders.ways import IDS, generate, ready
from kvtrace.analysis.checks import EQUAL, check


class Wrapper(nn.Module):
    """As people write it: everything goes to the model inside."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside
        self.value = nn.Linear(4, 1)

    def generate(self, *args, **kwargs):
        return self.inside.generate(*args, **kwargs)

    def forward(self, ids):
        return self.inside(ids).logits + 1


@pytest.fixture
def model():
    return ready(tiny_model("llama"))


def test_what_a_wrapper_generates_with_is_recorded_whole(model, tmp_path):
    expected = generate(model)()
    wrapper = Wrapper(model)
    path = tmp_path / "a.kvt"
    with kvtrace.record(wrapper, path):
        result = generate(wrapper)()
    trace = kvtrace.open(path)
    assert torch.equal(result, expected)
    assert len(trace) == 6
    assert trace.step(5).chosen == (int(expected[0, -1]),)
    assert_attention_explains_itself(trace)
    assert [one.name for one in trace.meta.lanes] == ["recomputed"]
    said = "the model here is LlamaForCausalLM, a part of Wrapper: it was called, not the whole"
    assert said in trace.meta.not_recorded
    assert not trace.meta.unseen


def test_what_generates_is_recorded_however_little_of_the_wrapper_it_is(model, tmp_path):
    wrapper = Wrapper(model)
    wrapper.tower = nn.Linear(1000, 1000)
    expected = generate(model)()
    with kvtrace.record(wrapper, tmp_path / "a.kvt"):
        result = generate(wrapper)()
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert len(trace) == 6
    assert check(trace).verdict == EQUAL


def test_a_tower_that_is_most_of_a_model_and_is_asked_first_is_not_the_model(tmp_path):
    model, ids, asked = SEEING["qwen2_vl"](depth=20)
    weights = sum(one.numel() for one in model.parameters())
    assert sum(one.numel() for one in model.model.visual.parameters()) > weights / 2
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, **asked)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.model.class_name == "Qwen2VLForConditionalGeneration"
    assert check(trace).verdict == EQUAL


def test_the_cache_of_what_a_wrapper_calls_is_the_live_one(model, tmp_path):
    wrapper = Wrapper(model)
    path = tmp_path / "a.kvt"
    with kvtrace.record(wrapper, path, recompute="off"):
        first = wrapper.inside(IDS)
        wrapper.inside(IDS[:, :1], past_key_values=first.past_key_values)
    trace, held, _ = record(model, lambda: _two_calls(model), tmp_path / "b.kvt")
    assert_caches_agree(trace, held)
    assert_caches_agree(kvtrace.open(path), held)


def _two_calls(model):
    first = model(IDS)
    model(IDS[:, :1], past_key_values=first.past_key_values)


def test_a_wrapper_that_is_called_is_the_model(model, tmp_path):
    wrapper = Wrapper(model)
    trace, _, _ = record(wrapper_with_config(wrapper), lambda: wrapper(IDS), tmp_path / "a.kvt")
    assert trace.meta.sites[0].module == "inside.model.layers.0.self_attn"
    assert not trace.meta.not_recorded


def wrapper_with_config(wrapper):
    wrapper.config = wrapper.inside.config
    return wrapper


def test_calls_of_a_part_after_calls_of_the_whole_are_steps_too(model, tmp_path):
    wrapper = wrapper_with_config(Wrapper(model))
    trace, _, _ = record(wrapper, lambda: (wrapper(IDS), model(IDS)), tmp_path / "a.kvt")
    assert len(trace) == 2
    assert not trace.meta.not_recorded


def test_a_cache_that_the_whole_and_a_part_take_turns_with_is_followed(model, tmp_path):
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        take_turns(model, whole_first=True)
    assert_followed_through(kvtrace.open(tmp_path / "a.kvt"))


@pytest.mark.parametrize("whole_first", [True, False])
def test_turns_of_a_whole_and_a_part_are_one_run_where_no_model_was_named(
    whole_first, model, tmp_path
):
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        take_turns(model, whole_first=whole_first)
    assert [one.name for one in tmp_path.glob("*.kvt")] == ["a.kvt"]
    assert_followed_through(kvtrace.open(tmp_path / "a.kvt"))


def take_turns(model, *, whole_first):
    cache, tokens = DynamicCache(), IDS
    for turn in range(5):
        if turn % 2 == whole_first:
            rows = model.model(tokens, past_key_values=cache).last_hidden_state
            logits = model.lm_head(rows)
        else:
            logits = model(tokens, past_key_values=cache).logits
        tokens = logits[:, -1:].argmax(-1)


def assert_followed_through(trace):
    assert [one.new for one in trace] == [12, 1, 1, 1, 1]
    assert [one.parent for one in trace] == [None, 0, 1, 2, 3]
    assert check(trace).verdict == EQUAL


def test_a_loop_that_calls_the_model_without_its_head_is_recorded(model, tmp_path):
    def run():
        hidden = model.model(IDS)
        token = model.lm_head(hidden.last_hidden_state[:, -1:]).argmax(-1)
        return model.model(token, past_key_values=hidden.past_key_values)

    with torch.no_grad():
        path = tmp_path / "a.kvt"
        with kvtrace.record(model, path):
            run()
    trace = kvtrace.open(path)
    assert [one.new for one in trace] == [12, 1]
    assert trace.step(0).caches[0].length_after == 12
    assert_attention_explains_itself(trace)


def test_a_compiled_wrapper_that_generates_is_recorded(model, tmp_path):
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with kvtrace.record(compiled, tmp_path / "a.kvt", recompute="off"):
        generate(compiled, max_new_tokens=3)()
    assert len(kvtrace.open(tmp_path / "a.kvt")) == 3


def test_nothing_is_left_on_what_was_called_instead(model, tmp_path):
    wrapper = Wrapper(model)
    with kvtrace.record(wrapper, tmp_path / "a.kvt", recompute="off"):
        generate(wrapper, max_new_tokens=2)()
    for part in wrapper.modules():
        assert not part._forward_pre_hooks
        assert not part._forward_hooks
        assert "forward" not in part.__dict__
