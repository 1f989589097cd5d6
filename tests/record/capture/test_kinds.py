"""What kind of attention a module has, as far as its place and its memory say it."""

import pytest

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.record.capture.attention.kinds import kind_of, linear

UNSEEN = (
    "model.layers.0.self_attn: named attention, but none was seen in it",
    "model.layers.3.self_attn (Attention): looks like attention, and none was seen in it",
    "model.layers.12.linear_attn: named attention, but none was seen in it",
)


def test_layers_that_keep_a_state_attend_without_rows():
    others, said = linear(UNSEEN, {0, 12})
    assert others == UNSEEN[1:2]
    assert said == (
        "model.layers.0.self_attn and 1 more: linear attention: memory of constant size, and no "
        "rows to show"
    )


def test_without_such_a_layer_every_module_stays_unseen():
    assert linear(UNSEEN, {1, 2}) == (UNSEEN, "")
    assert linear(("mixer: named attention, but none was seen in it",), {0})[1] == ""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("cross_decoder.layers.0.mixer", "self"),
        ("layers.3.cross_layer_attention", "self"),
        ("layers.3.cross_attention", "cross"),
        ("layers.3.crossattention.self", "cross"),
        ("decoder.layers.0.encoder_attn", "cross"),
    ],
)
def test_layers_that_share_rows_with_others_do_not_attend_to_an_encoder(path, kind):
    assert kind_of(path, two_sided=False) == kind


def test_a_module_that_knows_no_layer_is_of_the_one_whose_cache_it_reads(tmp_path):
    model = ready(tiny_model("zamba2"))
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model.generate(IDS, do_sample=False, max_new_tokens=3)
    sites = kvtrace.open(tmp_path / "a.kvt").meta.sites
    assert [site.layer for site in sites] == [1, 4]
