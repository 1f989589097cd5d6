"""One attention over a decoder's own rows and an encoder's, side by side, as T5Gemma 2 has it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration
from transformers.cache_utils import EncoderDecoderCache

from builders.recorded import assert_attention_explains_itself, record
from builders.ways import IDS, ready
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.trace import stands_for_none

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8,
    "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
SIGHT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def merged():
    torch.manual_seed(0)
    encoder = {"text_config": SIZES, "vision_config": SIGHT, "mm_tokens_per_image": 4}
    encoder |= {"image_token_id": 90, "boi_token_index": 91, "eoi_token_index": 92}
    config = T5Gemma2Config(encoder=encoder, decoder=dict(SIZES), image_token_index=90)
    config.eos_token_id = config.decoder.eos_token_id = None
    model = T5Gemma2ForConditionalGeneration._from_config(config, attn_implementation="eager")
    model = ready(model.eval())
    model.generation_config.decoder_start_token_id = 2
    return model


def recorded(model, path, **options):
    def run():
        return model.generate(IDS, do_sample=False, max_new_tokens=6, **options)

    expected = run()
    trace, _, tokens = record(model, run, path, recompute="once")
    assert torch.equal(tokens, expected)
    return trace, run


def live_bytes(model, run):
    """What both halves of the cache hold after each step of the decoder."""
    found = []

    def see(_module, _args, kwargs, result):
        cache = result.past_key_values
        assert isinstance(cache, EncoderDecoderCache)
        halves = (cache.self_attention_cache, cache.cross_attention_cache)
        layers = [layer for half in halves for layer in half.layers]
        found.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

    handle = model.register_forward_hook(see, with_kwargs=True)
    run()
    handle.remove()
    return found


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_the_bytes_of_both_halves_are_counted_at_every_step(options, tmp_path):
    model = merged()
    trace, run = recorded(model, tmp_path / "a.kvt", **options)
    told = [step.cost.cache_bytes for step in trace]
    assert told[1:] == live_bytes(model, run)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_rows_of_the_text_are_compared_beside_those_of_the_encoder(options, tmp_path):
    trace, _ = recorded(merged(), tmp_path / "a.kvt", **options)
    assert_attention_explains_itself(trace)
    report = check(trace)
    assert (report.verdict, report.findings, report.caveats) == (EQUAL, (), ())
    for number in list(trace.numbers)[1:]:
        compared = trace.compared(number).max_abs[[site.index for site in mine(trace)]]
        # queries, keys, values and output
        assert (compared[:, :, 0] == compared[:, :, 0]).all()


def mine(trace):
    return [site for site in trace.meta.sites if site.kind == "self"]


def test_an_encoders_rows_stand_for_no_token_of_the_text_from_the_first_step_on(tmp_path):
    trace, _ = recorded(merged(), tmp_path / "a.kvt")
    site = mine(trace)[0].index
    for number in list(trace.numbers)[1:]:
        positions = trace.cache(number, site).positions.tolist()
        assert positions[:number] == list(range(number))
        assert all(stands_for_none(one) for one in positions[number:])
        assert len(positions) == number + IDS.shape[1]


def test_weights_for_the_text_and_what_it_reads_cost_what_torch_counts(tmp_path):
    model = merged()
    trace, run = recorded(model, tmp_path / "a.kvt")
    found = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.register_forward_pre_hook(lambda *_: found.append(-counter.get_total_flops()))
        model.register_forward_hook(
            lambda *_: found.append(found.pop() + counter.get_total_flops())
        )
        run()
    assert [step.cost.cached.total for step in trace][1:] == found
    assert not any("extrapolated" in text for text in trace.meta.not_recorded)
