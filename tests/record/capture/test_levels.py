"""The data flow is followed where nothing else sees attention, and nowhere else."""

from __future__ import annotations

import pytest
import torch

import kvtrace
from builders.attentions import Model, turned
from builders.recorded import record
from builders.tiny_models import tiny_model
from kvtrace.record.capture.attention.kinds import is_two_sided, kind_of
from kvtrace.record.capture.watch import Watch

IDS = torch.tensor([[7, 3, 21, 9, 30]])


def scaled(q, k, v):
    """Causal attention, fused."""
    q, k, v = turned(q, k, v)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def test_a_model_with_unused_eyes_runs_at_full_speed(tmp_path):
    model = tiny_model("gemma3")
    text = next(m for name, m in model.named_modules() if name.endswith("layers.0.self_attn"))
    before = type(text).forward
    with Watch(model, lambda _: None) as watch:
        model(IDS)
        assert type(text).forward is before
    assert watch.notes == ()
    assert watch.unseen == ()


def test_the_layers_of_a_bert_that_decodes_are_no_encoder(tmp_path):
    model = tiny_model("rembert")
    trace, _, _ = record(model, lambda: model(IDS), tmp_path / "a.kvt", recompute="once")
    assert {site.kind for site in trace.meta.sites} == {"self"}
    assert trace.compared(0) is not None


class AttnLM(Model):
    """A whole model that calls itself attention."""


def test_a_model_named_attention_is_seen_in_its_layers(tmp_path):
    model = AttnLM(scaled)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"), torch.no_grad():
        model(IDS)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace.meta.sites) == 2
    assert trace.meta.unseen == ()


@pytest.mark.parametrize(
    ("path", "two_sided", "kind"),
    [
        ("encoder.block.0.layer.0.SelfAttention", True, "encoder"),
        ("bert.encoder.layer.0.attention.self", False, "self"),
        ("decoder.block.0.layer.1.EncDecAttention", True, "cross"),
        ("decoder.layers.0.encoder_attn", True, "cross"),
        ("decoder.layer.0.encoder_decoder_attention.attention", True, "cross"),
        ("encoder_decoder.decoder.layers.0.self_attn", True, "self"),
        ("speecht5.decoder.wrapped_decoder.layers.0.self_attn", True, "self"),
        ("speecht5.encoder.wrapped_encoder.layers.0.attention", True, "encoder"),
        ("model.image_decoder.layers.0.attn", True, "encoder"),
        ("model.vision_tower.layers.0.attn", False, "encoder"),
        ("model.layers.0.self_attn", False, "self"),
        ("self_attn_encoder", True, "self"),
        ("enc_layers.0.self_attn", True, "encoder"),
        ("text_encoder.blocks.0.attn", True, "encoder"),
        ("dec_blocks.0.attn", True, "self"),
        ("codec.0.attn", True, "self"),
    ],
)
def test_the_kind_of_an_attention_is_told_by_its_place(path, two_sided, kind):
    assert kind_of(path, two_sided=two_sided) == kind


@pytest.mark.parametrize(
    ("paths", "two_sided"),
    [
        (["encoder.layers.0", "decoder.layers.0"], True),
        (["bert.encoder.layer.0", "cls.predictions.decoder"], False),
    ],
)
def test_a_decoder_has_parts_and_a_projection_has_none(paths, two_sided):
    assert is_two_sided(paths) is two_sided
