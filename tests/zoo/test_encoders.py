"""Bugs in the cache of what an encoder said, and of a decoder behind one."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
)

import kvtrace
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.files import open_trace


def model():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "max_position_embeddings": 64, "vocab_size": 90, "init_std": 0.2}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return BartForConditionalGeneration(BartConfig(**sizes, **ids)).eval()


def found(path, bart, spoil=None):
    """What a check says of a prefill of three tokens and three decode steps.

    `spoil` is given the cache before each decode step.
    """
    tokens = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    past, start = None, 0
    with kvtrace.record(bart, path, keep_rows=True), torch.no_grad():
        encoded = bart.get_encoder()(input_ids=tokens[:1])
        for end in (3, 4, 5, 6):
            if past is not None and spoil is not None:
                spoil(past)
            out = bart(
                encoder_outputs=encoded,
                decoder_input_ids=tokens[1:, start:end],
                past_key_values=past,
                use_cache=True,
            )
            past, start = out.past_key_values, end
    trace = open_trace(path)
    report = check(trace)
    places = [(one, trace.site(one.layer)) for one in report.findings]
    return report, [(one.name, one.tensor, site.kind, site.layer) for one, site in places]


def test_a_healthy_one_gives_nothing(tmp_path):
    report, places = found(tmp_path / "a.kvt", model())
    assert (report.verdict, places) == (EQUAL, [])


def halve_values(cache):
    cache.cross_attention_cache.layers[0].values *= 0.5


def lend_keys(cache):
    layers = cache.cross_attention_cache.layers
    layers[1].keys = layers[0].keys.clone()


def drop_oldest(cache):
    one = cache.cross_attention_cache.layers[0]
    one.keys, one.values = one.keys[:, :, -9:], one.values[:, :, -9:]


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (halve_values, ("OLD-ROWS-SCALED", "v", "cross", 0)),
        (lend_keys, ("WRONG-LAYER", "k", "cross", 1)),
        (drop_oldest, ("EVICTED-EARLY", "k", "cross", 0)),
    ],
)
def test_rows_of_the_encoder_that_change_are_named(tmp_path, spoil, first):
    _, places = found(tmp_path / "a.kvt", model(), spoil)
    assert places[0] == first


def test_positions_that_restart_are_seen_in_the_decoders_first_layer(tmp_path):
    bart = model()
    positions = bart.model.decoder.embed_positions
    right = positions.forward
    positions.forward = lambda ids, past=0, position_ids=None: right(ids, 0)
    _, places = found(tmp_path / "a.kvt", bart)
    assert places[0] == ("POSITION-EMBEDDING", "q", "self", 0)


def test_rows_of_an_encoder_that_are_kept_for_another_text_are_stale(tmp_path):
    bart = model()
    path = tmp_path / "a.kvt"
    past = EncoderDecoderCache(DynamicCache(config=bart.config), DynamicCache(config=bart.config))
    with kvtrace.record(bart, path, keep_rows=True), torch.no_grad():
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            tokens = torch.randint(3, 90, (2, 12), generator=generator)
            encoded = bart.get_encoder()(input_ids=tokens[:1])
            past.self_attention_cache = DynamicCache(config=bart.config)  # the other is forgotten
            for start, end in ((0, 3), (3, 4), (4, 5)):
                bart(
                    encoder_outputs=encoded,
                    decoder_input_ids=tokens[1:, start:end],
                    past_key_values=past,
                    use_cache=True,
                )
    trace = open_trace(path)
    first = check(trace).findings[0]
    site = trace.site(first.layer)
    assert (first.name, first.step, site.kind, site.layer) == ("STALE-CACHE", 5, "cross", 0)
    assert first.where.startswith("decoder layer 0 cross-attention")
    assert first.since == ""


def exchanged(path, how):
    """What a check says of five decode steps, the encoder's text another one from the third on."""
    bart = model()
    tokens = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(1))
    past, start = None, 0
    with torch.no_grad():
        both = [bart.get_encoder()(input_ids=tokens[n : n + 1]) for n in (0, 2)]
    with kvtrace.record(bart, path, keep_rows=True), torch.no_grad():
        for end in (3, 4, 5, 6):
            late = end > 4
            given = {
                "same output": {"encoder_outputs": both[0]},
                "other output": {"encoder_outputs": both[late]},
                "shorter output": {
                    "encoder_outputs": (both[0][0][:, : -4 if late else None].clone(),)
                },
                "encoded again": {"input_ids": tokens[:1].clone()},
                "other ids": {"input_ids": tokens[2:] if late else tokens[:1]},
                "fewer ids": {"input_ids": tokens[:1, : -4 if late else None]},
            }[how]
            out = bart(
                **given,
                decoder_input_ids=tokens[1:2, start:end],
                past_key_values=past,
                use_cache=True,
            )
            past, start = out.past_key_values, end
    trace = open_trace(path)
    report = check(trace)
    places = [(one, trace.site(one.layer)) for one in report.findings]
    return report, [(one.name, one.step, site.kind, site.layer) for one, site in places]


@pytest.mark.parametrize("how", ["other output", "shorter output", "other ids", "fewer ids"])
def test_rows_of_an_encoder_that_has_read_something_else_since_are_stale(tmp_path, how):
    report, places = exchanged(tmp_path / "a.kvt", how)
    assert places == [("STALE-CACHE", 2, "cross", 0)]
    assert "still those of step 0" in report.findings[0].evidence


@pytest.mark.parametrize("how", ["same output", "encoded again"])
def test_an_encoder_that_is_given_the_same_in_every_step_is_silent(tmp_path, how):
    report, places = exchanged(tmp_path / "a.kvt", how)
    assert (report.verdict, places, report.steps) == (EQUAL, [], 4)


def two_texts(path, spoil):
    """What a check says first of three decode steps in a batch of two, after another text.

    `spoil` is given the cache of that text and the one to go on with.
    """
    bart, pasts = model(), []
    with kvtrace.record(bart, path, keep_rows=True), torch.no_grad():
        for seed in (1, 2):
            tokens = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(seed))
            encoded, past, start = bart.get_encoder()(input_ids=tokens[:2]), None, 0
            for end in (3, 4, 5, 6):
                if seed == 2 and end == 5:
                    spoil(pasts[0], past)
                out = bart(
                    encoder_outputs=encoded,
                    decoder_input_ids=tokens[2:, start:end],
                    past_key_values=past,
                    use_cache=True,
                )
                past, start = out.past_key_values, end
            pasts.append(past)
    trace = open_trace(path)
    first = check(trace).findings[0]
    return first.name, trace.site(first.layer).kind, trace.site(first.layer).layer


def exchange(_, past):
    for layer in past.cross_attention_cache.layers:
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)


def take_back(before, past):
    past.cross_attention_cache.layers[1] = before.cross_attention_cache.layers[1]


def test_rows_of_two_encoded_texts_that_change_places(tmp_path):
    assert two_texts(tmp_path / "a.kvt", exchange) == ("WRONG-BATCH-ROW", "cross", 0)


def test_one_layer_that_goes_back_to_the_encoded_text_before(tmp_path):
    assert two_texts(tmp_path / "a.kvt", take_back) == ("STALE-CACHE", "cross", 1)
