"""The bytes that a trace says a cache holds are those of its live tensors, at every step."""

from __future__ import annotations

import pytest
import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache

import kvtrace
from builders.encoder_decoders import bart, t5, whisper
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.models import LoadRequest, load

NEW = 5


def tensors_of(cache):
    """Every tensor that a cache keeps, each memory once."""
    halves = [cache]
    if isinstance(cache, EncoderDecoderCache):
        halves = [cache.self_attention_cache, cache.cross_attention_cache]
    layers = [layer for half in halves for layer in half.layers]
    found = [one for layer in layers for one in (layer.keys, layer.values)]
    return [one for one in found if isinstance(one, torch.Tensor)]


def assert_bytes_are_live(model, path, run):
    """Records `run`, and holds the bytes of each decoding step against the cache's own tensors."""
    live = []

    def see(_module, _args, kwargs, result):
        live.append(sum(one.nbytes for one in tensors_of(kwargs["past_key_values"])))

    with kvtrace.record(model, path, recompute="off"):
        handle = model.register_forward_hook(see, with_kwargs=True)
        try:
            run()
        finally:
            handle.remove()
    trace = kvtrace.open(path)
    # an encoder keeps no cache: its pass is a step of its own
    told = [step.cost.cache_bytes for step in trace if step.chosen]
    assert told[-len(live) :] == live
    assert len(live) == NEW


@pytest.mark.parametrize("make", [t5, bart, whisper])
def test_of_both_halves_of_an_encoder_decoder(make, tmp_path):
    model = make()
    options = {"do_sample": False, "max_new_tokens": NEW}
    given = {"input_ids": IDS} if make is not whisper else {"input_features": torch.ones(1, 8, 40)}
    assert_bytes_are_live(model, tmp_path / "a.kvt", lambda: model.generate(**given, **options))


def test_of_layers_that_share_keys_and_values(tmp_path):
    loaded = load(LoadRequest("demo-cla", new_tokens=NEW), lambda text, share: None)
    ids = torch.tensor([loaded.prompt.ids])

    @torch.no_grad()
    def run():
        cache, now = DynamicCache(), ids
        for _ in range(NEW):
            logits = loaded.model(now, past_key_values=cache, use_cache=True).logits
            now = logits[:, -1:].argmax(-1)

    assert_bytes_are_live(loaded.model, tmp_path / "a.kvt", run)


@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek_v3", "gemma3_text"])
def test_of_a_cache_of_one_kind_or_two(name, tmp_path):
    model = ready(tiny_model(name))
    options = {"do_sample": False, "max_new_tokens": NEW}
    assert_bytes_are_live(model, tmp_path / "a.kvt", lambda: model.generate(IDS, **options))


def test_of_memory_that_a_model_changes_where_it_lies(tmp_path, monkeypatch):
    # some read the attribute of a layer and write into it: no method of the cache is called
    model = ready(tiny_model("mamba"))
    names = ("update_conv_state", "update_recurrent_state", "get_conv_state", "get_recurrent_state")
    plain = {name: vars(Cache)[name] for name in names}
    with torch.no_grad(), kvtrace.record(model, tmp_path / "run.kvt", recompute="off"):
        cache = model(IDS, use_cache=True).cache_params
        for name, method in plain.items():
            monkeypatch.setattr(Cache, name, method)
        for token in (3, 4):
            model(IDS.new_tensor([[token]]), cache_params=cache, use_cache=True)
        monkeypatch.undo()
    told = [step.cost.cache_bytes for step in kvtrace.open(tmp_path / "run.kvt")]
    layers = [(layer.conv_states, layer.recurrent_states) for layer in cache.layers]
    held = sum(one.nbytes for two in layers for part in two for one in part.values())
    assert told == [held] * 3


def test_of_layers_that_a_step_skips(tmp_path):
    model = ready(tiny_model("llama"))
    layers, cache = model.model.layers, DynamicCache(config=model.config)

    def run():
        model(IDS, past_key_values=cache)
        for count in (2, 2, 4, 3):
            model.model.layers = layers[:count]
            model(IDS[:, :1], past_key_values=cache)
        model.model.layers = layers

    assert_bytes_are_live(model, tmp_path / "a.kvt", run)
