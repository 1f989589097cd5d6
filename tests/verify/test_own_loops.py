"""Loops and caches of people's own around models of transformers: what their bugs are called."""

import types

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import kvtrace
from builders.encoder_decoders import whisper
from builders.tiny_models import tiny_model
from verify.bugs import SIZES, llama

PROMPT = torch.arange(10, 18)[None]


def report(model, run):
    return kvtrace.check(model, run=torch.no_grad()(run)).trials[0].report


def first(model, run):
    return report(model, run).findings[0]


def decode(model, cache, tokens, start, step=None):
    for at in range(start, start + tokens):
        more = {} if step is None else step(at)
        model(torch.tensor([[20 + at]]), past_key_values=cache, use_cache=True, **more)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_forward_that_was_wrapped_in_a_loop_is_compared(kind):
    model = tiny_model(kind)
    layers = model.model.layers if kind == "llama" else model.transformer.h
    for layer in layers:
        attention = layer.self_attn if kind == "llama" else layer.attn

        def forward(self, *args, before=attention.forward, **more):
            return before(*args, **more)

        attention.forward = types.MethodType(forward, attention)
    found = report(model, lambda: model.generate(PROMPT, max_new_tokens=4, do_sample=False))
    assert found.ok, found


def test_rows_of_an_encoder_that_are_cached_again_are_named_though_no_output_differs():
    model = whisper()

    def run():
        heard = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))
        encoded = model.get_encoder()(heard)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for token in (1, 5, 6):
            for layer in cache.is_updated:
                cache.is_updated[layer] = False
            given = {"decoder_input_ids": torch.tensor([[token]]), "past_key_values": cache}
            model(encoder_outputs=encoded, use_cache=True, **given)

    found = first(model, run)
    assert (found.name, found.tensor) == ("DUPLICATE-ROWS", "k")
    assert "cross-attention" in found.where


def test_a_buffer_that_is_cleared_and_keeps_its_length_holds_zeros_in_front_of_a_text():
    model = llama()

    def run():
        cache = StaticCache(config=model.config, max_cache_len=32)
        model(PROMPT, past_key_values=cache, use_cache=True)
        decode(model, cache, 2, 8)
        for layer in cache.layers:
            layer.keys.zero_(), layer.values.zero_()
        again = {"position_ids": torch.arange(6)[None]}
        model(PROMPT[:, :6] + 50, past_key_values=cache, use_cache=True, **again)
        decode(model, cache, 2, 6, lambda at: {"position_ids": torch.tensor([[at]])})

    found = first(model, run)
    assert (found.name, found.step) == ("ZERO-GAP", 3)


def test_rows_dropped_from_the_middle_were_not_overwritten():
    model = llama()

    def run():
        cache = DynamicCache()
        model(PROMPT, past_key_values=cache, use_cache=True)
        for at in range(4):
            decode(model, cache, 1, 8 + at, lambda at: {"position_ids": torch.tensor([[at]])})
            if at == 2:  # those of the steps before, all but the newest
                for layer in cache.layers:
                    kept = [*range(8), 10]
                    layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]

    found = first(model, run)
    assert (found.name, found.step, found.layer) == ("EVICTED-EARLY", 4, 0)


def test_rows_of_a_layer_whose_update_somebody_replaced_are_looked_at_themselves():
    model = llama()

    def run():
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(PROMPT, past_key_values=cache, use_cache=True)
        for layer in cache.layers:

            def late(keys, values, *more, layer=layer):
                layer.keys[:, :, int(layer.cumulative_length) + 1] = keys[:, :, 0]
                layer.values[:, :, int(layer.cumulative_length) + 1] = values[:, :, 0]
                layer.cumulative_length += 1
                return layer.keys, layer.values

            layer.update = late
        decode(model, cache, 3, 8)

    found = first(model, run)
    assert (found.name, found.step, found.layer, found.slot) == ("WRITE-POSITION", 1, 0, 8)


def test_a_mask_that_grew_on_the_wrong_side_shows_padding():
    model = llama()
    ids = torch.randint(5, SIZES["vocab_size"], (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0

    def run():
        cache = DynamicCache()
        places = (mask.cumsum(1) - 1).clamp(min=0)
        model(ids, past_key_values=cache, attention_mask=mask, position_ids=places, use_cache=True)
        for at in range(3):
            model(
                ids[:, :1],
                past_key_values=cache,
                attention_mask=torch.cat([torch.ones(2, at + 1, dtype=mask.dtype), mask], 1),
                position_ids=mask.sum(1, keepdim=True) + at,
                use_cache=True,
            )

    found = first(model, run)
    assert (found.name, found.step, found.sequences) == ("PAD-VISIBLE", 1, (1,))


def beams(model, reorder, tokens=6, width=3):
    """Somebody's beam search: `reorder(layers, rows)` between the steps."""
    cache, scores = DynamicCache(), torch.tensor([0.0] + [-1e9] * (width - 1))[:, None]
    fed, moved = PROMPT.expand(width, -1), []
    for _ in range(tokens):
        out = model(fed, past_key_values=cache, use_cache=True)
        scores, best = (scores + out.logits[:, -1].log_softmax(-1)).flatten().topk(width)
        vocabulary = out.logits.shape[-1]
        rows, fed, scores = best // vocabulary, (best % vocabulary)[:, None], scores[:, None]
        moved.append(rows.tolist() != list(range(width)))
        reorder(cache.layers, rows)
    assert any(moved[1:-1])


def select(layers, rows):
    for layer in layers:
        layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def test_beams_that_code_of_ones_own_reorders_go_on_with_their_rows():
    model = tiny_model("gpt2")
    model.transformer.wpe.weight.data *= 20
    found = report(model, lambda: beams(model, select))
    assert found.ok, found


def test_the_layer_that_such_code_forgets_is_the_wrong_one():
    model = tiny_model("gpt2")
    model.transformer.wpe.weight.data *= 20
    found = first(model, lambda: beams(model, lambda layers, rows: select(layers[:-1], rows)))
    assert (found.name, found.layer) == ("WRONG-BATCH-ROW", 3)


def test_rows_that_are_mixed_up_are_those_of_another_sequence():
    model = llama()
    ids = torch.arange(24).view(3, 8) + 5

    def run():
        cache, fed = DynamicCache(), ids
        for _ in range(4):
            logits = model(fed, past_key_values=cache, use_cache=True).logits
            fed = logits[:, -1:].argmax(-1)
            select(cache.layers, torch.tensor([1, 2, 0]))

    found = first(model, run)
    assert (found.name, found.step, found.layer) == ("WRONG-BATCH-ROW", 1, 0)
