"""Encoder-decoders of transformers, driven by our own loop as `generate` drives them."""

import pytest
import torch

import kvtrace
from builders.encoder_decoders import BY_WINDOWS, READERS, bart, t5, whisper
from kvtrace.analysis.course import course
from kvtrace.analysis.phase import phase
from kvtrace.analysis.rows.origin import origin, tokens_of_rows
from kvtrace.errors import ModelError
from kvtrace.record.decode import Limits, decode
from kvtrace.record.driving import as_transformers

SOURCE = [5, 9, 30, 7, 81, 44]
STEPS = 5


def recorded(model, path, source=SOURCE):
    driven, chosen = as_transformers(model, source), []
    with kvtrace.record(driven.model, path):
        decode(
            driven.model,
            driven.prompt,
            drive=driven.drive,
            limits=Limits(STEPS),
            on_token=chosen.append,
        )
    return kvtrace.open(path), chosen


def generated(model, source=SOURCE):
    ids = torch.tensor([source])
    asked = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0].tolist()


@pytest.mark.parametrize("name", [*READERS, *BY_WINDOWS])
def test_the_tokens_are_those_of_generate(name, tmp_path):
    model = (READERS | BY_WINDOWS)[name]()
    trace, chosen = recorded(model, tmp_path / "a.kvt")
    begin, *expected = generated(model)
    assert chosen == expected
    assert course(trace) == "encoder over 6, prefill of 1, 4 decode steps"
    assert trace.step(1).tokens == ((begin,),)
    assert [phase(trace, step) for step in trace] == ["encoder", "prefill", *["decode"] * 4]


def test_a_first_token_that_generate_forces_is_forced(tmp_path):
    model = bart()
    model.generation_config.forced_bos_token_id = 17
    _, chosen = recorded(model, tmp_path / "a.kvt")
    assert chosen == generated(model)[1:]
    assert chosen[0] == 17


def test_rows_of_the_encoder_are_named_by_the_tokens_it_read(tmp_path):
    trace, _ = recorded(t5(), tmp_path / "a.kvt")
    encoder, cross = (
        next(site.index for site in trace.meta.sites if site.kind == kind)
        for kind in ("encoder", "cross")
    )
    assert tokens_of_rows(trace, 0, encoder).tolist() == SOURCE
    assert tokens_of_rows(trace, 4, cross).tolist() == SOURCE
    assert origin(trace, 4, cross, row=4).token == 81


def test_beams_share_the_tokens_that_the_encoder_read(tmp_path):
    model, batch = t5(), torch.tensor([SOURCE, SOURCE[::-1]])
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.generate(batch, attention_mask=torch.ones_like(batch), num_beams=2, max_new_tokens=3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    cross = next(site.index for site in trace.meta.sites if site.kind == "cross")
    read = [tokens_of_rows(trace, 2, cross, sequence).tolist() for sequence in range(4)]
    assert read == [SOURCE, SOURCE, SOURCE[::-1], SOURCE[::-1]]


def test_an_encoder_that_reads_no_text_is_refused_by_what_it_reads():
    with pytest.raises(ModelError, match="its encoder reads input_features, a prompt is text"):
        as_transformers(whisper(), SOURCE)


def test_a_decoder_that_nothing_begins_is_refused():
    model = t5()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = config.pad_token_id = None
    with pytest.raises(ModelError, match="set decoder_start_token_id in its configuration"):
        as_transformers(model, SOURCE)
