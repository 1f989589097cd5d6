"""Encoder-decoders of one's own that hand their cross-attention ready keys and values."""

import pytest
import torch

import kvtrace
from builders.ready_rows import LAYERS, SOURCES, STYLES, translate, translator

RIGHT = {("own", "self"), ("other", "cross")}


def kinds(model, path, **asked):
    """Kinds of attention in the decoder, by what the model calls them."""
    with kvtrace.record(model, path):
        translate(model, **asked)
    sites = [one for one in kvtrace.open(path).meta.sites if one.module.startswith("decoder")]
    assert len(sites) == 2 * LAYERS
    return {(one.module.rsplit(".", 1)[1], one.kind) for one in sites}


@pytest.mark.parametrize("prompt", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_ready_rows_of_another_text_are_told_from_those_of_ones_own(style, prompt, tmp_path):
    assert kinds(translator(style), tmp_path / "a.kvt", prompt=prompt) == RIGHT


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_as_long_as_the_source_is_told_by_its_order(style, tmp_path):
    prompt = SOURCES.shape[1]
    assert kinds(translator(style), tmp_path / "a.kvt", prompt=prompt) == RIGHT


@pytest.mark.parametrize("style", STYLES)
def test_a_source_shorter_than_the_prompt_is_another_text(style, tmp_path):
    model = translator(style)
    assert kinds(model, tmp_path / "a.kvt", sources=SOURCES[:, :2], prompt=5) == RIGHT


@pytest.mark.parametrize("prompt", [1, 3])
def test_a_buffer_as_long_as_the_source_holds_ones_own_text(prompt, tmp_path):
    sources = torch.arange(3, 15).expand(2, -1)
    model = translator("arguments", room=sources.shape[1])
    assert kinds(model, tmp_path / "a.kvt", sources=sources, prompt=prompt) == RIGHT


@pytest.mark.parametrize("prompt", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_a_decoder_that_is_handed_ready_rows_is_compared(style, prompt):
    model = translator(style)

    report = kvtrace.check(model, run=lambda: translate(model, prompt=prompt))

    assert report.ok, report


def test_an_encoder_that_is_called_beside_the_model_is_seen(tmp_path):
    model, path = translator("late"), tmp_path / "a.kvt"
    with kvtrace.record(model, path):
        translate(model)
    trace = kvtrace.open(path)
    assert trace.step(0).tokens == tuple(tuple(row.tolist()) for row in SOURCES)
    read = [trace.meta.sites[one].module.split(".")[0] for one in trace.step(0).attending]
    assert read == ["encoder"] * LAYERS


@pytest.mark.parametrize("prompt", [1, 3])
def test_padding_of_a_source_that_later_steps_forget_is_named(prompt):
    model = translator("late", forgets=True)

    report = kvtrace.check(model, run=lambda: translate(model, prompt=prompt))

    assert report.findings[0].name == "PAD-VISIBLE", report
    assert report.findings[0].spoken.startswith("decoder layer 0 cross-attention"), report
