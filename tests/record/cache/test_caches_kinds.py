"""Every kind of cache: slots, capacity, what was written, evicted, changed, and its bytes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    MistralLarge4Config,
    MistralLarge4ForConditionalGeneration,
)
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    StaticCache,
)

from builders.recorded import (
    assert_attention_explains_itself,
    assert_caches_agree,
    record,
)
from builders.tiny_models import shrunk, tiny_config, tiny_model
from builders.ways import IDS, generate, ready
from kvtrace.analysis.nature import attention_is, rows_are
from kvtrace.trace import Tensor


def model_of(model_type):
    return ready(tiny_model(model_type))


def held_nbytes(cache):
    """Bytes of every tensor with rows or memory that a cache holds, each tensor once."""
    found = {}
    waiting = [vars(cache), *(vars(layer) for layer in cache.layers)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor) and one.dim() > 2:
            found[one.data_ptr(), one.nbytes] = one.nbytes
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return sum(found.values())


KINDS = {
    "dynamic": ("llama", lambda config: DynamicCache(config=config)),
    "sliding": ("mistral", lambda config: DynamicCache(config=config)),
    "static": ("llama", lambda config: StaticCache(config=config, max_cache_len=20)),
    "static window": ("mistral", lambda config: StaticCache(config=config, max_cache_len=20)),
    "static latents": ("deepseek_v3", lambda config: StaticCache(config=config, max_cache_len=20)),
    "both": ("gemma2", lambda config: DynamicCache(config=config)),
    "recurrent": ("qwen3_next", lambda config: DynamicCache(config=config)),
    "recurrent static": (
        "jamba",
        lambda config: StaticCache(config=config, max_cache_len=20),
    ),
    "indexed": ("deepseek_v32", lambda config: DynamicCache(config=config)),
    "one head for all": ("gpt_bigcode", lambda config: DynamicCache(config=config)),
    "every head its own": ("gpt2", lambda config: DynamicCache(config=config)),
    "shared by layers": ("gemma3n_text", lambda config: DynamicCache(config=config)),
    "chunks": ("llama4_text", lambda config: DynamicCache(config=config)),
    "differential": ("diffllama", lambda config: DynamicCache(config=config)),
    "sinks": ("gpt_oss", lambda config: DynamicCache(config=config)),
    "state space": ("bamba", lambda config: DynamicCache(config=config)),
    "made without a config": ("llama", lambda _: DynamicCache()),
    "a list of layers": ("llama", lambda _: Cache(layers=[DynamicLayer() for _ in range(4)])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_any_kind_is_rebuilt_and_its_bytes_are_the_live_ones(kind, tmp_path):
    model_type, build = KINDS[kind]
    model = model_of(model_type)
    cache = build(model.config)
    live = []
    handle = model.register_forward_hook(lambda *_: live.append(held_nbytes(cache)))
    run = generate(model, past_key_values=cache, max_new_tokens=8)
    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    handle.remove()
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert [step.cost.cache_bytes for step in trace] == live


def test_parts_of_rows_that_are_attended_to_apart_are_no_second_cache(tmp_path):
    model = model_of("diffllama")
    live = []

    def see(module, args, kwargs, result):
        live.append(held_nbytes(result.past_key_values))

    handle = model.register_forward_hook(see, with_kwargs=True)
    trace, held, _ = record(model, generate(model, num_beams=3), tmp_path / "a.kvt")
    handle.remove()
    assert_caches_agree(trace, held)
    assert [step.cost.cache_bytes for step in trace] == live
    assert {site.source for site in trace.meta.sites} == {"derived"}


OWN = {
    "latents that are keys and values at once": "deepseek_v4",
    "recurrent memory in a list beside the layers": "minimax",
}


@pytest.mark.parametrize("kind", OWN)
def test_a_cache_that_a_model_makes_for_itself_has_its_live_bytes(kind, tmp_path):
    model = model_of(OWN[kind])
    live = []

    def see(module, args, kwargs, result):
        live.append(held_nbytes(result.past_key_values))

    handle = model.register_forward_hook(see, with_kwargs=True)
    trace, held, _ = record(model, generate(model, max_new_tokens=8), tmp_path / "a.kvt")
    handle.remove()
    assert_caches_agree(trace, held)
    assert [step.cost.cache_bytes for step in trace] == live


def test_rows_that_are_keys_and_values_at_once_are_written_once(tmp_path):
    model = model_of("deepseek_v4")
    trace, _, _ = record(model, generate(model), tmp_path / "a.kvt")
    sliding = [one for one in trace.meta.cache_layers if one.kind == "sliding"]
    assert sliding
    assert all(one.held_dim == one.key_dim for one in sliding)


def test_memory_beside_the_layers_is_a_layer_of_constant_size(tmp_path):
    model = model_of("minimax")
    trace, _, _ = record(model, generate(model), tmp_path / "a.kvt")
    states = [one for one in trace.meta.cache_layers if one.kind == "state"]
    # by hand: four heads of 16 × 16 float32 in every other layer
    assert [(one.layer, one.state_bytes) for one in states] == [(1, 4096), (3, 4096)]


def test_a_static_buffer_has_its_capacity_and_fills_slot_by_slot(tmp_path):
    model = model_of("llama")
    cache = StaticCache(config=model.config, max_cache_len=20)
    trace, _, _ = record(model, generate(model, past_key_values=cache), tmp_path / "a.kvt")
    layer = trace.cache_layer(0)
    assert (layer.kind, layer.capacity) == ("static", 20)
    for step in trace:
        view = trace.cache(step.number, 0)
        assert view.slots.tolist() == list(range(12 + step.number))
        assert step.caches[0].length_after == 12 + step.number


@pytest.mark.parametrize("static", [False, True])
def test_a_window_keeps_its_newest_rows_and_evicts_one_a_step(static, tmp_path):
    model = model_of("mistral")
    options = {"cache_implementation": "static"} if static else {}
    trace, held, _ = record(model, generate(model, **options), tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    window = model.config.sliding_window
    assert trace.cache_layer(0).window == window
    for step in list(trace)[1:]:
        newest = step.positions[0][0]
        assert trace.cache(step.number, 0).positions.tolist() == list(
            range(newest - window + 1, newest + 1)
        )
        assert step.caches[0].rows == 1


def test_rows_that_were_there_before_the_recording_are_in_it(tmp_path):
    model = model_of("llama")
    cache = model(IDS).past_key_values

    def run():
        out = model(torch.tensor([[5]]), past_key_values=cache)
        return model(torch.tensor([[6]]), past_key_values=out.past_key_values)

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert trace.step(0).parent is None
    assert trace.step(0).positions == ((12,),)
    assert trace.cache(1, 0).positions.tolist() == list(range(14))


def test_a_cache_made_of_legacy_tuples_goes_on(tmp_path):
    model = model_of("llama")

    def run():
        first = model(IDS).past_key_values
        pairs = tuple((layer.keys, layer.values) for layer in first.layers)
        return model(torch.tensor([[5]]), past_key_values=DynamicCache(pairs)).logits

    expected = run()
    trace, held, result = record(model, run, tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert trace.cache(1, 0).positions.tolist() == list(range(13))


class Strided(DynamicLayer):
    """A layer of the user's own: once it holds ten rows it keeps every other one, and the last."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if keys.shape[2] > 10:
            kept = torch.arange(keys.shape[2]) % 2 == keys.shape[2] % 2
            kept[-1] = True
            self.keys, self.values = keys[:, :, kept], values[:, :, kept]
        return keys, values


def test_a_layer_class_of_the_users_own_is_followed_by_its_rows(tmp_path):
    model = model_of("llama")

    def run():
        cache = Cache(layers=[Strided() for _ in range(4)])
        out = model(IDS, past_key_values=cache, position_ids=torch.arange(12)[None])
        for number in range(12, 17):
            out = model(
                torch.tensor([[number]]),
                past_key_values=cache,
                position_ids=torch.tensor([[number]]),
            )
        return out.logits

    expected = run()
    trace, held, result = record(model, run, tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert trace.cache(1, 0).positions.tolist() == [0, 2, 4, 6, 8, 10, 11, 12]
    assert not any(group.rewritten for step in trace for group in step.caches)


def test_a_reset_buffer_begins_anew(tmp_path):
    model = model_of("llama")

    def run():
        cache = StaticCache(config=model.config, max_cache_len=20)
        for ids in (IDS, IDS.flip(1)):
            cache.reset()
            out = model(ids, past_key_values=cache)
            model(out.logits[:, -1:].argmax(-1), past_key_values=cache)

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert trace.cache(3, 0).positions.tolist() == list(range(13))
    assert trace.cache(3, 0).cells.tolist() == list(range(13, 26))


def test_half_precision_rows_are_stored_as_they_are(tmp_path):
    model = ready(tiny_model("llama", dtype=torch.bfloat16))
    trace, held, _ = record(model, generate(model), tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert trace.cache_layer(0).dtype == "bfloat16"
    rows = trace.source.cells(0, Tensor.KEYS, 0, 12, None)
    assert rows.dtype.itemsize == 2


def test_a_cache_that_hands_out_other_rows_than_it_holds_still_holds_its_own(tmp_path):
    class Shifted(DynamicCache):
        """In decode steps the first kv head reads its old keys one slot too far."""

        def update(self, keys, values, layer_idx, *args, **kwargs):
            new = keys.shape[2]
            keys, values = super().update(keys, values, layer_idx, *args, **kwargs)
            shifted = keys.clone()
            if new == 1:
                shifted[:, 0, :-1] = shifted[:, 0, :-1].roll(1, dims=1)
            return shifted, values

    model = model_of("llama")
    run = generate(model, past_key_values=Shifted(config=model.config), max_new_tokens=4)
    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    groups = [step.caches[0] for step in trace]
    assert [(one.length_before, one.length_after) for one in groups] == [
        (0, 12),
        (12, 13),
        (13, 14),
        (14, 15),
    ]
    assert_attention_explains_itself(trace)


def test_heads_that_are_repeated_before_they_are_cached_are_no_latents(tmp_path):
    config = tiny_config("falcon").to_dict() | {"new_decoder_architecture": True, "num_kv_heads": 2}
    config.pop("num_key_value_heads", None)
    model = ready(AutoModelForCausalLM.from_config(FalconConfig(**config)).eval())
    trace, held, _ = record(model, generate(model), tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert [trace.site(0).num_kv_heads, held[0][0, False][0].shape[1]] == [2, 4]
    kinds = {(layer.kind, layer.num_kv_heads) for layer in trace.meta.cache_layers}
    assert kinds == {("dynamic", 4), ("derived", 2)}
    assert rows_are(trace, 0) == "derived"


def test_latents_without_a_rotary_key_have_values_without_features(tmp_path):
    sizes = shrunk(MistralLarge4Config())
    torch.manual_seed(0)
    model = ready(MistralLarge4ForConditionalGeneration._from_config(MistralLarge4Config(**sizes)))
    trace, held, _ = record(model.eval(), generate(model), tmp_path / "a.kvt", recompute="once")
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    dims = [one.value_dim for one in trace.meta.cache_layers if one.kind == "latent"]
    # positions are encoded in all layers but the last
    assert dims == [8, 8, 8, 0]
    assert "MLA: latent 16, no rotary key" in attention_is(trace, 3)
