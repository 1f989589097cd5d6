"""FLOPs that a whole recording tells, of every forward, against torch's own counter."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import StaticCache

import kvtrace
from builders.attentions import Model
from builders.tiny_models import tiny_model
from builders.ways import IDS, generate, ready


def grouped(rows, matrices, *rest, out_shape=None, **kwargs):
    return 2 * rows[0] * rows[1] * matrices[-1]


def fused(q, k, v, *rest, out_shape=None, **kwargs):
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


UNKNOWN_TO_TORCH = {
    torch.ops.aten._grouped_mm: grouped,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused,
}


def assert_told_as_counted(model, run, path):
    with kvtrace.record(model, path, recompute="off"), torch.no_grad():
        run()
    told = [step.cost.cached.total for step in kvtrace.open(path)]
    counted: list[int] = []
    counter = FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH)
    before = model.register_forward_pre_hook(lambda *_: counted.append(counter.get_total_flops()))
    after = model.register_forward_hook(
        lambda *_: counted.append(counter.get_total_flops() - counted.pop())
    )
    with counter, torch.no_grad():
        run()
    before.remove()
    after.remove()
    assert told == counted


def test_what_we_calculate_to_prove_a_fused_call_is_no_cost_of_the_models(tmp_path):
    model = ready(tiny_model("falcon"))  # its layers multiply weights of their own
    assert_told_as_counted(model, generate(model), tmp_path / "run.kvt")


@pytest.mark.parametrize(
    "kind",
    [
        "inkling2_text",  # attends over its layers, too
        "dots3_note_text",  # what chooses rows costs what their attention does, behind 16 of them
    ],
)
def test_a_fused_attention_is_counted_once_whether_it_is_over_rows_or_not(kind, tmp_path):
    model = ready(tiny_model(kind))
    assert_told_as_counted(model, generate(model, max_new_tokens=8), tmp_path / "run.kvt")


def fused_heads(q, k, v):
    """One head after the other; [sequences, time, heads, dim]."""
    each = [one.unbind(2) for one in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention
    heads = [attend(*(one[:, None] for one in head)) for head in zip(*each, strict=True)]
    return torch.stack([one[:, 0] for one in heads], 2)


def fused_texts(q, k, v):
    """One text after the other."""
    attend = torch.nn.functional.scaled_dot_product_attention
    texts = zip(*(one.transpose(1, 2).split(1) for one in (q, k, v)), strict=True)
    return torch.cat([attend(*text) for text in texts]).transpose(1, 2)


def multiplied_heads(q, k, v):
    """The same by hand."""
    each = [one.unbind(2) for one in (q, k, v)]
    heads = [
        (one @ other.transpose(1, 2) / one.shape[-1] ** 0.5).softmax(-1) @ values
        for one, other, values in zip(*each, strict=True)
    ]
    return torch.stack(heads, 2)


@pytest.mark.parametrize("loop", [fused_heads, multiplied_heads])
def test_a_loop_over_heads_costs_what_all_at_once_do(loop, tmp_path):
    model = Model(loop)
    assert_told_as_counted(model, lambda: model(IDS), tmp_path / "run.kvt")


def test_a_loop_over_texts_costs_what_all_at_once_do(tmp_path):
    model = Model(fused_texts)
    assert_told_as_counted(model, lambda: model(IDS.repeat(2, 1)), tmp_path / "run.kvt")


def two_texts_with_one_beginning(model):
    def run():
        begun = model(IDS[:, :8], use_cache=True).past_key_values
        for rest in ([1, 2], [3, 4, 5]):
            ids = torch.cat([IDS[:, :8], IDS.new_tensor([rest])], dim=1)
            again = copy.deepcopy(begun)
            model.generate(ids, past_key_values=again, max_new_tokens=3, do_sample=False)

    return run


def test_a_layer_that_only_rows_of_logits_pass_is_told_from_one_that_all_pass(tmp_path):
    model = ready(tiny_model("electra", attn_implementation="eager"))
    assert_told_as_counted(model, two_texts_with_one_beginning(model), tmp_path / "run.kvt")


@pytest.mark.parametrize("model_type", ["qwen3_5_moe", "lfm3"])
def test_the_rest_of_a_prompt_is_counted_where_its_layers_take_several_rows_otherwise(
    model_type, tmp_path
):
    model = ready(tiny_model(model_type, attn_implementation="sdpa"))
    assert_told_as_counted(model, two_texts_with_one_beginning(model), tmp_path / "run.kvt")


def test_steps_that_no_formula_fits_cost_what_another_of_their_size_did(tmp_path):
    model = ready(tiny_model("zamba2"))

    def chunks():
        cache = StaticCache(config=model.config, max_cache_len=24)
        start = 0
        for new in (5, 4, 3, 1, 1, 1, 4):
            ids = IDS.repeat(1, 2)[:, start : start + new]
            model(ids, past_key_values=cache, position_ids=torch.arange(start, start + new)[None])
            start += new

    assert_told_as_counted(model, chunks, tmp_path / "run.kvt")


@pytest.mark.parametrize("model_type", ["deepseek_v4", "longcat_flash", "qwen4_exp"])
def test_steps_of_one_size_that_cost_differently_are_counted_one_by_one(model_type, tmp_path):
    # a compressor has more rows now and then, and some experts compute nothing
    model = ready(tiny_model(model_type, attn_implementation="eager"))
    run = generate(model, max_new_tokens=8, min_new_tokens=8)
    assert_told_as_counted(model, run, tmp_path / "run.kvt")


def test_products_of_another_layer_that_cost_what_an_attention_does_are_counted(tmp_path):
    # at 12 tokens its scan has a product as large as q·kᵀ, and its attention is fused
    model = ready(tiny_model("nemotron_h", attn_implementation="sdpa"))
    assert_told_as_counted(model, generate(model), tmp_path / "run.kvt")


def test_products_beside_attention_in_its_own_layer_are_counted(tmp_path):
    # what it predicts for its streams costs what q·kᵀ does over a window of 8, or half of 16 rows
    model = ready(tiny_model("gemma3n_text", attn_implementation="sdpa"))
    run = generate(model, cache_implementation="static", max_new_tokens=5)
    assert_told_as_counted(model, run, tmp_path / "run.kvt")
