"""Layers that take over another layer's rows, and later those of a wrong one."""

import torch

import kvtrace
from builders.tiny_models import tiny_model

IDS = torch.tensor([[5, 9, 30, 7, 81, 44]])


def taken_over(other):
    """A run whose last layer shares the rows of another kind of layer once there is a cache."""
    model = tiny_model("gemma3n_text")
    last = model.model.layers[-1].self_attn
    assert last.is_kv_shared_layer

    def run():
        with torch.no_grad():
            out = model(IDS[:, :4], use_cache=True)
            own, last.layer_type = last.layer_type, other or last.layer_type
            for n in (4, 5):
                out = model(IDS[:, n : n + 1], past_key_values=out.past_key_values)
            last.layer_type = own

    return kvtrace.check(model, run=run), last


def test_a_layer_that_takes_over_the_rows_of_another_than_before_is_named():
    report, last = taken_over("sliding_attention")
    first = report.findings[0]
    assert last.layer_type == "full_attention"
    assert (first.name, first.step) == ("WRONG-LAYER", 1)
    assert f"layer {last.layer_idx}" in first.spoken
    assert "'s cache in this step, and read those of layer" in first.evidence


def test_a_layer_that_goes_on_taking_over_the_same_rows_is_right():
    report, _ = taken_over("")
    assert report.ok, report
