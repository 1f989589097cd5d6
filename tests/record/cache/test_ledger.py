"""The cache rebuilt from a trace is the live cache, bit for bit."""

from __future__ import annotations

import pytest
import torch

from builders.encoder_decoders import bart, t5
from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.tiny_models import tiny_model

ARCHITECTURES = [
    "gpt2",
    "llama",
    "mistral",
    "gemma2",
    "qwen3",
    "deepseek_v3",
    "gemma3n_text",
    "gpt_oss",
]

IDS = torch.tensor([[7, 3, 21, 9, 30, 14, 7, 3, 21, 9, 5, 40]])
LEFT_PADDED = torch.ones(2, 12, dtype=torch.long)
LEFT_PADDED[0, :4] = 0

WAYS = {
    "greedy": {"inputs": IDS},
    "sampling": {"inputs": IDS, "do_sample": True, "num_return_sequences": 2},
    "beams": {"inputs": IDS, "num_beams": 3},
    "prompt lookup": {"inputs": IDS, "prompt_lookup_num_tokens": 3},
    "left padding": {"inputs": IDS.repeat(2, 1), "attention_mask": LEFT_PADDED},
    "chunked prefill": {"inputs": IDS, "prefill_chunk_size": 5},
    "static cache": {"inputs": IDS, "cache_implementation": "static", "disable_compile": True},
}


def quiet_generation(model):
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return quiet_generation(tiny_model(request.param))


@pytest.mark.parametrize("way", WAYS)
def test_the_rebuilt_cache_is_the_live_one(model, way, tmp_path):
    def run():
        torch.manual_seed(0)
        return model.generate(**{"do_sample": False, "max_new_tokens": 6, **WAYS[way]})

    expected = run()
    trace, held, result = record(model, run, tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert not any(group.mask.full for step in trace for group in step.sites)
    assert not any(group.rewritten for step in trace for group in step.caches)


def test_two_turns_on_one_cache_continue_each_other(model, tmp_path):
    from transformers import DynamicCache

    def run():
        cache = DynamicCache(config=model.config)
        first = model.generate(IDS, past_key_values=cache, max_new_tokens=3, do_sample=False)
        more = torch.cat([first, torch.tensor([[11, 12, 13]])], dim=1)
        return model.generate(more, past_key_values=cache, max_new_tokens=3, do_sample=False)

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3, 4]
    assert [step.phase for step in trace] == ["prefill", "decode", "decode"] * 2
    assert trace.step(3).positions[0] == (14, 15, 16, 17)


def test_a_rejected_draft_is_cropped_and_its_cells_stay_in_history(tmp_path):
    model = quiet_generation(tiny_model("llama"))

    def run():
        cache = None
        for tokens in ([7, 3, 21], [9, 30, 14]):
            out = model(torch.tensor([tokens]), past_key_values=cache)
            cache = out.past_key_values
        cache.crop(-2)
        model(torch.tensor([[5]]), past_key_values=cache)

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    (event,) = trace.step(2).events
    assert (event.kind, event.lengths_before[0], event.lengths_after[0]) == ("crop", 6, 4)
    (runs,) = trace.step(2).caches[0].attended
    assert [(run.cell, run.count, run.position) for run in runs] == [(0, 4, 0), (6, 1, 4)]


def test_beams_take_over_each_others_cells(tmp_path):
    model = quiet_generation(tiny_model("llama"))
    trace, held, _ = record(
        model,
        lambda: model.generate(IDS, num_beams=3, do_sample=False, max_new_tokens=4),
        tmp_path / "a.kvt",
    )
    assert_caches_agree(trace, held)
    event = trace.step(1).events[0]
    assert event.kind == "reorder"
    assert len(event.order) == 3
    before = trace.step(0).caches[0].kept
    for sequence, taken in enumerate(event.order):
        prompt = trace.step(1).caches[0].attended[sequence]
        assert prompt[0].cell == before[taken][0].cell


def test_layers_that_share_keys_and_values_store_them_once(tmp_path):
    model = quiet_generation(tiny_model("gemma3n_text"))
    trace, _, _ = record(
        model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=2), tmp_path / "a.kvt"
    )
    sharing = [site for site in trace.meta.sites if site.source == "shared"]
    assert sharing
    for site in sharing:
        assert trace.site(site.shared_from).reads == site.reads
    assert len(trace.meta.cache_layers) == len(trace.meta.sites) - len(sharing)


def test_expanded_latents_are_recorded_as_attended_and_counted_as_latents(tmp_path):
    model = quiet_generation(tiny_model("deepseek_v3"))
    trace, held, _ = record(
        model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=3), tmp_path / "a.kvt"
    )
    kinds = [layer.kind for layer in trace.meta.cache_layers]
    assert kinds.count("latent") == kinds.count("derived") == len(trace.meta.sites)
    for number, live in enumerate(held):
        nbytes = sum(keys.nbytes + values.nbytes for keys, values in live.values())
        assert trace.step(number).cost.cache_bytes == nbytes


def test_left_padding_has_negative_positions(tmp_path):
    model = quiet_generation(tiny_model("llama"))
    trace, _, _ = record(
        model,
        lambda: model.generate(
            IDS.repeat(2, 1), attention_mask=LEFT_PADDED, do_sample=False, max_new_tokens=2
        ),
        tmp_path / "a.kvt",
    )
    step = trace.step(0)
    assert step.positions[0] == (-4, -3, -2, -1, *range(8))
    assert step.positions[1] == tuple(range(12))
    assert trace.step(1).positions == ((8,), (12,))
    assert trace.cache(1, 0, 0).positions.tolist() == [-4, -3, -2, -1, *range(9)]
    assert step.sites[0].mask.padding == (4, 0)


def test_a_window_evicts_the_oldest_rows(tmp_path):
    model = quiet_generation(tiny_model("mistral"))
    window = model.config.sliding_window
    trace, held, _ = record(
        model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=3), tmp_path / "a.kvt"
    )
    assert_caches_agree(trace, held)
    group = trace.step(1).caches[0]
    assert sum(run.count for run in group.attended[0]) == window
    assert sum(run.count for run in group.kept[0]) == window - 1
    assert trace.site(0).window == window


def test_a_static_buffer_stores_only_what_was_written(tmp_path):
    model = quiet_generation(tiny_model("llama"))
    trace, _, _ = record(
        model,
        lambda: model.generate(
            IDS, cache_implementation="static", disable_compile=True, max_new_tokens=3
        ),
        tmp_path / "a.kvt",
    )
    layer = trace.cache_layer(0)
    assert layer.kind == "static"
    assert layer.capacity is not None
    assert layer.capacity >= 14
    view = trace.cache(1, 0)
    assert view.slots.tolist() == list(range(13))


@pytest.mark.parametrize("build", [t5, bart])
@pytest.mark.parametrize("beams", [1, 3])
def test_cross_attention_writes_once_and_reads_ever_after(build, beams, tmp_path):
    model = quiet_generation(build())

    def run():
        return model.generate(IDS, num_beams=beams, do_sample=False, max_new_tokens=4)

    expected = run()
    trace, held, result = record(model, run, tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert [step.phase for step in trace] == ["prefill", "prefill", "decode", "decode", "decode"]
    assert {site.kind for site in trace.meta.sites} == {"encoder", "self", "cross"}
    cross = next(site for site in trace.meta.sites if site.kind == "cross")
    written = [trace.cache_step(number, cross.index).rows for number in (1, 2, 3)]
    assert written == [12, 0, 0]
    assert trace.cache(3, cross.index).positions.tolist() == list(range(12))


@pytest.mark.parametrize("name", ["falcon", "bloom", "gptj"])
def test_models_that_do_not_ask_the_interface_are_followed_by_their_data(name, tmp_path):
    model = quiet_generation(tiny_model(name))

    def run():
        return model.generate(IDS, do_sample=False, max_new_tokens=4)

    expected = run()
    trace, held, result = record(model, run, tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert all(site.level > 1 for site in trace.meta.sites)
    assert all(site.source == "cache" for site in trace.meta.sites)
    assert trace.meta.unseen == ()
    assert any("milliseconds" in sentence for sentence in trace.meta.not_recorded)


class Halving:
    """Edits a layer after its attention was given the rows, as cache compression does."""

    def __init__(self, keep):
        self.keep = keep

    def __call__(self, module, args, kwargs, output):
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        if layer.keys.shape[2] > len(self.keep):
            layer.keys = layer.keys[:, :, self.keep]
            layer.values = layer.values[:, :, self.keep]


def test_rows_that_somebody_drops_in_the_middle_keep_their_cells(tmp_path):
    model = quiet_generation(tiny_model("llama"))
    handles = [
        layer.self_attn.register_forward_hook(Halving([0, 1, 5, 6, 11]), with_kwargs=True)
        for layer in model.model.layers
    ]

    def run():
        cache = model(IDS).past_key_values
        for handle in handles:
            handle.remove()
        model(torch.tensor([[5]]), past_key_values=cache, position_ids=torch.tensor([[12]]))

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert trace.cache(1, 0).cells.tolist() == [0, 1, 5, 6, 11, 12]
    assert trace.cache(1, 0).positions.tolist() == [0, 1, 5, 6, 11, 12]
    assert not any(group.rewritten for step in trace for group in step.caches)


def test_rows_that_somebody_rewrites_become_new_cells(tmp_path):
    model = quiet_generation(tiny_model("llama"))

    def run():
        cache = model(IDS).past_key_values
        keys = cache.layers[1].keys.clone()
        keys[:, :, 3] += 1
        cache.layers[1].keys = keys
        model(torch.tensor([[5]]), past_key_values=cache)

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert trace.cache(1, 0).cells.tolist() == list(range(13))
    assert trace.cache(1, 1).cells.tolist() == [0, 1, 2, 12, *range(4, 12), 13]
    assert trace.cache_step(1, 1).rewritten == 1


def test_a_users_own_cache_class_is_followed_by_content(tmp_path):
    from transformers import DynamicCache

    class Forgetful(DynamicCache):
        """Keeps the first row and the last three."""

        def update(self, keys, values, layer_idx, *args, **kwargs):
            out = super().update(keys, values, layer_idx, *args, **kwargs)
            layer = self.layers[layer_idx]
            if layer.keys.shape[2] > 4:
                layer.keys = torch.cat([layer.keys[:, :, :1], layer.keys[:, :, -3:]], dim=2)
                layer.values = torch.cat([layer.values[:, :, :1], layer.values[:, :, -3:]], dim=2)
            return out

    model = quiet_generation(tiny_model("llama"))

    def run():
        cache = Forgetful(config=model.config)
        model(IDS, past_key_values=cache)
        for number in (12, 13):
            model(
                torch.tensor([[5]]),
                past_key_values=cache,
                position_ids=torch.tensor([[number]]),
            )

    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert_caches_agree(trace, held)
    assert trace.cache(1, 0).positions.tolist() == [0, 9, 10, 11, 12]
    assert trace.cache(2, 0).positions.tolist() == [0, 10, 11, 12, 13]


def test_rows_that_a_quantised_cache_rounds_are_new_cells(tmp_path):
    from transformers.cache_utils import QuantizedCache

    model = quiet_generation(tiny_model("llama"))
    cache = QuantizedCache("fp8", model.config)

    def run():
        return model.generate(IDS, past_key_values=cache, do_sample=False, max_new_tokens=4)

    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    assert_attention_explains_itself(trace)
    groups = [step.caches[0] for step in trace]
    # the prompt is attended to before it is rounded; a rounded row stays what it is
    assert [group.rewritten for group in groups] == [0, 12, 0, 0]
    assert trace.cache(3, 0).cells.tolist() == list(range(12, 27))
    assert trace.cache_layer(0).kind == "quantised"
    packed = [
        one.nbytes
        for layer in cache.layers
        for pair in (layer._quantized_keys, layer._quantized_values)
        for one in pair
    ]
    assert trace.step(3).cost.cache_bytes == sum(packed)


def test_recurrent_layers_are_told_with_their_constant_size(tmp_path):
    model = quiet_generation(tiny_model("qwen3_next"))
    trace, held, _ = record(
        model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=4), tmp_path / "a.kvt"
    )
    assert_caches_agree(trace, held)
    recurrent = [layer for layer in trace.meta.cache_layers if layer.kind == "state"]
    types = model.config.layer_types
    assert len(recurrent) == types.count("linear_attention")
    state_bytes = sum(layer.state_bytes for layer in recurrent)
    assert state_bytes > 0
    for number, live in enumerate(held):
        nbytes = sum(keys.nbytes + values.nbytes for keys, values in live.values())
        assert trace.step(number).cost.cache_bytes == nbytes + state_bytes


def test_rows_made_beside_the_cached_ones_are_recorded_too(tmp_path):
    model = quiet_generation(tiny_model("deepseek_v4"))
    trace, _, _ = record(
        model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=3), tmp_path / "a.kvt"
    )
    # one layer attends to compressed rows beside the cached ones
    assert_attention_explains_itself(trace)
