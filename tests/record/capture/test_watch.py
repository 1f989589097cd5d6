"""Watching changes nothing, and nothing of it is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import AttentionInterface

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.record.capture.watch import Watch

IDS = torch.tensor([[7, 3, 21, 9, 30]])
WATCHED = (Cache, DynamicCache, StaticCache, AttentionInterface, GenerationMixin)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def traces_of_us(model):
    """Everything that a watcher could leave behind."""
    classes = [(owner, name, id(value)) for owner in WATCHED for name, value in vars(owner).items()]
    modules = [(path, sorted(vars(module))) for path, module in model.named_modules()]
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    return classes, modules, hooks


def test_logits_are_bit_identical_while_watched(model):
    expected = model(IDS).logits
    with Watch(model, lambda forward: None):
        watched = model(IDS).logits
    assert torch.equal(watched, expected)


def test_nothing_is_left_after_watching(model):
    before = traces_of_us(model)
    with Watch(model, lambda forward: None):
        model(IDS)
        assert traces_of_us(model) != before
    assert traces_of_us(model) == before


def test_nothing_is_left_after_an_exception_inside(model):
    before = traces_of_us(model)

    def run():
        with Watch(model, lambda forward: None):
            model(IDS)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        run()
    assert traces_of_us(model) == before


def test_nothing_is_left_after_a_forward_that_failed(model, tmp_path):
    before = traces_of_us(model)
    with pytest.raises(IndexError), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model(torch.tensor([[10**6]]))
    assert traces_of_us(model) == before
    assert kvtrace.open(tmp_path / "a.kvt").ending.reason == "error"


def test_a_forward_says_what_went_in_and_what_attended(model):
    seen = []
    with Watch(model, seen.append):
        out = model(IDS)
        model(IDS[:, :1], past_key_values=out.past_key_values)
    assert [forward.number for forward in seen] == [0, 1]
    assert [forward.new for forward in seen] == [5, 1]
    assert torch.equal(seen[0].tokens, IDS)
    layers = model.config.num_hidden_layers
    assert [call.layer for call in seen[1].calls] == list(range(layers))
    assert [update.layer for update in seen[1].updates] == list(range(layers))
    assert all(update.continuous and update.known for update in seen[1].updates)
    assert seen[1].calls[0].keys.shape[2] == 6
    assert seen[1].took.ns() > 0


def test_ids_given_by_position_are_found(model):
    seen = []
    with Watch(model, seen.append):
        model.forward(IDS)
        model(IDS, torch.ones_like(IDS))
    assert [forward.new for forward in seen] == [5, 5]
    assert "attention_mask" in seen[1].arguments


def test_only_the_outermost_forward_counts(model):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(ids)

    seen = []
    with Watch(Wrapper(), seen.append) as watch:
        watch.model(IDS)
    assert [forward.new for forward in seen] == [5]
    assert seen[0].calls[0].module == "inner.model.layers.0.self_attn"


def test_two_models_are_told_apart(model):
    other = tiny_model("gpt2")
    mine, theirs = [], []
    with Watch(model, mine.append), Watch(other, theirs.append):
        model(IDS)
        other(IDS)
        other(IDS)
    assert (len(mine), len(theirs)) == (1, 2)
    assert len(mine[0].calls) == model.config.num_hidden_layers
    assert all(call.module.startswith("transformer.h") for call in theirs[0].calls)


def test_watchers_nest(model):
    outer, inner = [], []
    with Watch(model, outer.append):
        model(IDS)
        with Watch(model, inner.append):
            model(IDS)
        model(IDS)
    assert (len(outer), len(inner)) == (3, 1)
    assert len(outer[1].calls) == len(inner[0].calls) == len(outer[2].calls)


def test_another_thread_is_not_mixed_in(model):
    import threading

    other = tiny_model("gpt2")
    seen = []

    def run_other():
        for _ in range(3):
            other(IDS)

    def during(module, args):
        thread = threading.Thread(target=run_other)
        thread.start()
        thread.join()

    handle = model.model.layers[0].register_forward_pre_hook(during)
    with Watch(model, seen.append):
        model(IDS)
    handle.remove()
    assert len(seen[0].calls) == model.config.num_hidden_layers


def test_rows_edited_behind_the_caches_back_are_noticed(model):
    seen = []
    with Watch(model, seen.append):
        cache = model(IDS).past_key_values
        with torch.no_grad():
            cache.layers[0].keys.mul_(2)
        cache.layers[1].keys = cache.layers[1].keys.clone()
        model(IDS[:, :1], past_key_values=cache)
    assert [update.continuous for update in seen[1].updates[:3]] == [False, False, True]
