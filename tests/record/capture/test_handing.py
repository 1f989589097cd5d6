"""The cache under both names that transformers gives it: `past_key_values`, since 5.24 `cache`."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.generic import ModelOutput

import kvtrace
from kvtrace.record.capture.caches.handing import cache_given, cache_made, cache_name
from kvtrace.record.capture.inner import inner_models


@dataclass
class Renamed(ModelOutput):
    logits: Tensor | None = None
    cache: Cache | None = None


SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32}


class NewName(GPT2LMHeadModel):
    def forward(self, input_ids, cache=None, attention_mask=None, use_cache=True):
        out = self.transformer(input_ids, cache, attention_mask, use_cache=use_cache)
        return Renamed(self.lm_head(out[0]), out[1] if use_cache else None)


def test_a_model_that_says_cache_is_recorded_and_recomputed(tmp_path):
    torch.manual_seed(0)
    model = NewName(GPT2Config(**SIZES)).eval()
    ids = torch.tensor([[7, 3, 9, 11, 4]])
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        out = model(ids)
        model(torch.tensor([[8]]), cache=out.cache)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.phase for step in trace] == ["prefill", "decode"]
    keys = out.cache.layers[1].keys[0]
    assert torch.equal(torch.from_numpy(trace.cache(1, layer=1).keys.copy()), keys)
    assert trace.compared(1).relative.max() < 1e-5


def test_a_part_that_says_cache_is_no_encoder_of_images():
    wrapper = nn.Module()
    wrapper.part = NewName(GPT2Config(**SIZES))
    assert inner_models(wrapper)[0] is wrapper.part


def test_under_the_name_cache_only_a_cache_of_transformers_is_meant():
    cache = DynamicCache()
    assert cache_given({"cache": cache}) is cache
    assert cache_given({"cache": {"k": []}}) is None
    assert cache_given({"past_key_values": ((1, 2),), "cache": cache}) == ((1, 2),)


def test_what_came_back_is_found_without_asking_for_a_name_that_is_not_there():
    class Warns(Renamed):
        @property
        def past_key_values(self):
            warnings.warn("deprecated", FutureWarning, stacklevel=2)
            return self.cache

    cache = DynamicCache()
    assert cache_made(Warns(logits=torch.zeros(1), cache=cache)) is cache
    assert cache_made((torch.zeros(1), cache)) is None


def test_a_forward_is_called_by_the_name_it_has():
    assert cache_name(NewName.forward) == "cache"
    assert cache_name(lambda ids, past_key_values=None, cache=None: ids) == "past_key_values"
    assert cache_name(lambda ids, **more: ids) == "past_key_values"
