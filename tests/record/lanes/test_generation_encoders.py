"""Encoder, decoder and cross attention: written once, read ever after, recomputed alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.encoder_decoders import LISTENERS, READERS, fsmt, speecht5
from builders.recorded import assert_attention_explains_itself, caches_disagree, record
from builders.ways import IDS
from kvtrace.analysis.checks import UNCHECKED, check
from kvtrace.trace import Tensor

SOUND = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


def recorded(model, run, path):
    torch.manual_seed(0)
    expected = run()
    torch.manual_seed(0)
    trace, held, result = record(model, run, path, recompute="once")
    assert torch.equal(result, expected)
    compared, wrong = caches_disagree(trace, held)
    assert not wrong, wrong[0]
    assert_attention_explains_itself(trace)
    limit = trace.meta.lane("recomputed").tolerance
    for number in trace.numbers[1:]:
        found = trace.compared(number)
        assert found is not None
        assert not (found.beyond > 0).any(), (number, limit)
    assert trace.meta.unseen == ()
    return trace, compared


def assert_kept_near(trace):
    """The recomputed lane shows every site that attended: Q, K, V and output, visible rows too."""
    limit = trace.meta.lane("recomputed").tolerance
    for number in trace.numbers[1:]:
        for site in [site for group in trace.step(number).sites for site in group.sites]:
            if trace.site(site).kind == "encoder":
                continue
            for sequence in range(trace.step(number).num_sequences):
                mine, theirs = (
                    trace.cache(number, site, sequence, lane=lane)
                    for lane in ("cached", "recomputed")
                )
                near(mine.keys, theirs.keys, limit)
                near(mine.values, theirs.values, limit)
                near(
                    trace.output(number, site, sequence),
                    trace.rows(number, site, Tensor.OUTPUT, sequence, lane="recomputed")[
                        :, : trace.step(number).new
                    ],
                    limit,
                )
                seen = trace.reference(number, sequence).visible(site)
                assert seen.shape[1:] == (trace.step(number).new, mine.keys.shape[1])


def near(mine, theirs, limit):
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= limit * np.abs(theirs).max()  # NaN is not near


def written(trace):
    cross = next(site for site in trace.meta.sites if site.kind == "cross")
    assert trace.cache_layer(cross.reads).kind == "cross"
    return [trace.cache_step(number, cross.index).rows for number in trace.numbers[1:]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*READERS, *LISTENERS])
def test_an_encoder_decoder_is_traced_whole(name, way, tmp_path):
    model = (READERS | LISTENERS)[name]()
    given = SOUND if name in LISTENERS else IDS

    def run():
        return model.generate(given, do_sample=False, max_new_tokens=5, **WAYS[way])

    trace, compared = recorded(model, run, tmp_path / "a.kvt")
    assert {site.kind for site in trace.meta.sites} == {"encoder", "self", "cross"}
    if way == "no cache":
        assert {layer.kind for layer in trace.meta.cache_layers} == {"uncached"}
        return
    assert compared
    assert_kept_near(trace)
    rows = 20 if name in LISTENERS else 12
    assert written(trace) == [rows, 0, 0, 0, 0]


def test_a_decoder_that_masks_only_beside_ids_for_its_encoder_is_given_some(tmp_path):
    model = fsmt()

    def run():
        return model.generate(IDS, do_sample=False, num_beams=1, max_new_tokens=5)

    trace, _ = recorded(model, run, tmp_path / "a.kvt")
    assert_kept_near(trace)
    assert check(trace).ok


def test_an_encoder_that_adds_a_product_with_relative_positions_is_seen(tmp_path):
    model, wave = speecht5(), torch.randn(2, 150, generator=torch.Generator().manual_seed(0))

    def run():
        return model.generate(wave, do_sample=False, num_beams=1, max_new_tokens=5)

    trace, _ = recorded(model, run, tmp_path / "a.kvt")
    # its decoder is one, whatever the whole is called
    assert {site.kind for site in trace.meta.sites} == {"encoder", "self", "cross"}
    assert_kept_near(trace)
    assert check(trace).ok


@pytest.mark.parametrize("name", READERS)
def test_an_encoders_rows_that_are_computed_anew_each_step_are_no_cache(name, tmp_path):
    model = READERS[name]()
    trace, _ = recorded(
        model, lambda: model.generate(IDS, max_new_tokens=4, use_cache=False), tmp_path / "a.kvt"
    )
    report = check(trace)
    assert report.verdict == UNCHECKED
    assert "no KV cache was at work" in report.reason


@pytest.mark.parametrize("name", READERS)
def test_the_mask_of_an_encoders_text_places_no_token_of_its_decoder(name, tmp_path):
    model = READERS[name]()
    mask = torch.ones_like(IDS).repeat(2, 1)
    mask[1, :4] = 0

    def run():
        ids = IDS.repeat(2, 1)
        return model.generate(ids, attention_mask=mask, max_new_tokens=3, use_cache=False)

    trace, _ = recorded(model, run, tmp_path / "a.kvt")
    for step in list(trace)[1:]:  # the first is the encoder's pass
        assert [list(row) for row in step.positions] == [list(range(step.new))] * 2


def test_an_assistant_of_an_encoder_decoder_is_rolled_back_too(tmp_path):
    model, assistant = READERS["t5"](), READERS["t5"](seed=1)

    def run():
        return model.generate(IDS, assistant_model=assistant, do_sample=False, max_new_tokens=8)

    trace, compared = recorded(model, run, tmp_path / "a.kvt")
    assert compared
    assert any(event.kind == "crop" for step in trace for event in step.events)


@pytest.mark.parametrize("name", READERS)
def test_tokens_taken_back_leave_what_the_encoder_said_in_place(name, tmp_path):
    model = READERS[name]()
    heard = model.get_encoder()(IDS)

    def run():
        cache = None
        for tokens in ([1, 5, 7], [9], [4]):
            options = {"encoder_outputs": heard, "past_key_values": cache, "use_cache": True}
            found = model(decoder_input_ids=torch.tensor([tokens]), **options)
            cache = found.past_key_values
            if len(tokens) == 3:
                cache.crop(-2)  # 5 and 7 are taken back
        return found.logits

    trace, _ = recorded(model, run, tmp_path / "a.kvt")
    assert trace.step(1).positions == ((1,),)


@pytest.mark.parametrize("name", [*READERS, *LISTENERS])
def test_a_cross_cache_that_the_model_makes_for_itself_is_one(name, tmp_path):
    model = (READERS | LISTENERS)[name]()
    heard = model.get_encoder()(SOUND if name in LISTENERS else IDS)

    def run():
        cache, now, out = None, torch.tensor([[1, 5]]), []
        for _ in range(3):
            found = model(
                encoder_outputs=heard,
                decoder_input_ids=now,
                past_key_values=cache,
                use_cache=True,
            )
            cache, now = found.past_key_values, found.logits[:, -1:].argmax(-1)
            out.append(now)
        return torch.cat(out)

    expected = run()
    trace, held, result = record(model, run, tmp_path / "a.kvt", recompute="once")
    assert torch.equal(result, expected)
    compared, wrong = caches_disagree(trace, held)
    assert not wrong, wrong[0]
    assert compared
    assert {layer.kind for layer in trace.meta.cache_layers} == {"dynamic", "cross"}


def test_each_text_is_recomputed_with_its_own_encoder_output(tmp_path):
    model = READERS["bart"]()

    def run():
        one = model.generate(IDS, do_sample=False, max_new_tokens=4, num_beams=2)
        other = model.generate(IDS.flip(1), do_sample=False, max_new_tokens=4, num_beams=2)
        return torch.cat([one, other])

    trace, _, _ = record(model, run, tmp_path / "a.kvt", recompute="once")
    steps = [step.number for step in trace if trace.compared(step.number) is not None]
    assert len(steps) == len(trace) - 2  # an encoder's pass is the same in both lanes
    assert not any((trace.compared(number).beyond > 0).any() for number in steps)


def test_beams_change_places_once_in_both_halves(tmp_path):
    model = READERS["t5"]()

    def run():
        return model.generate(IDS, do_sample=False, max_new_tokens=5, num_beams=3)

    trace, _ = recorded(model, run, tmp_path / "a.kvt")
    events = [event for step in trace for event in step.events]
    assert {event.kind for event in events} == {"reorder"}
    for event in events:
        kinds = {trace.cache_layer(layer).kind for layer in event.layers}
        assert kinds == {"dynamic", "cross"}
    assert all(len(step.events) <= 1 for step in trace)


@pytest.mark.parametrize("name", READERS)
def test_prefixes_of_a_decoder_that_are_padded_are_recomputed_beside_a_padded_source(
    name, tmp_path
):
    model, source = READERS[name](), torch.arange(5, 19).reshape(2, 7)
    heard, said = torch.ones_like(source), torch.tensor([[1, 5, 6], [0, 1, 7]])
    heard[0, :2] = 0
    asked = {"attention_mask": heard, "decoder_attention_mask": (said != 0).long()}

    def run():
        return model.generate(source, decoder_input_ids=said, max_new_tokens=4, **asked)

    trace, compared = recorded(model, run, tmp_path / "a.kvt")
    assert compared
    assert check(trace).findings == ()
