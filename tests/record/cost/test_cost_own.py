"""What the recorder multiplies while it watches is no work of the model."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import kvtrace
from builders.attentions import Model, matmul
from builders.tiny_models import tiny_model
from kvtrace_fixtures.custom.tuple_cat import GPT


def test_following_rows_by_content_is_no_matrix_product_of_the_model(tmp_path):
    model = tiny_model("bloom")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, min_new_tokens=4)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert {site.level for site in trace.meta.sites} != {1}
    assert [step.cost.cached.other for step in trace] == [0] * 4
    assert all(step.cost.cached.qkv for step in trace)


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_flex_attention_is_recorded_and_its_products_counted(tmp_path):
    def flexible(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        causal = create_block_mask(lambda b, h, i, j: j <= i, None, None, 5, 5, device="cpu")
        return flex_attention(q, k, v, block_mask=causal).transpose(1, 2)

    model = Model(flexible)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"), torch.no_grad():
        model(torch.tensor([[3, 4, 5, 6, 7]]))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace.meta.sites) == 2
    assert trace.step(0).cost.cached.qkv


class Narrow(Model):
    """The width of a part is rounded down to a multiple of 256, as many do it: to nothing."""

    def __init__(self):
        super().__init__(matmul)
        self.up, self.down = nn.Linear(4, 0), nn.Linear(0, 4)

    def forward(self, ids):
        return super().forward(ids)[0] + self.down(self.up(torch.ones(1, 4))).sum()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_width_costs_nothing_and_stops_no_recording(tmp_path):
    model = Narrow()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"), torch.no_grad():
        model(torch.tensor([[3, 4, 5, 6, 7]]))
    assert kvtrace.open(tmp_path / "a.kvt").step(0).cost.cached.qkv


def test_a_head_that_was_exchanged_for_more_tokens_costs_what_its_matrix_does(tmp_path):
    model = tiny_model("llama")
    model.lm_head.weight = nn.Parameter(torch.zeros(160 + 7, 64))  # it still says 160
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"), torch.no_grad():
        model(torch.tensor([[3, 4, 5, 6, 7]]))
    cost = kvtrace.open(tmp_path / "a.kvt").step(0).cost.cached
    assert model.lm_head.out_features == 160
    assert cost.head == 2 * 5 * 64 * 167


def _costs(model, path, dtype):
    """Of a prefill of five and two decode steps, under autocast where there is a dtype."""
    casts = torch.autocast("cpu", dtype, enabled=dtype is not None)
    with casts, torch.no_grad():
        model(torch.tensor([[7]]))  # autocast keeps the copies that it makes of the weights
        with kvtrace.record(model, path, recompute="off"):
            model.generate(torch.tensor([[3, 4, 5, 6, 7]]), 3)
    return [step.cost for step in kvtrace.open(path)]


@pytest.mark.parametrize("zero", [False, True])
def test_weights_that_autocast_has_copied_cost_what_they_do_without_it(zero, tmp_path):
    torch.manual_seed(0)
    model = GPT(vocab=40).eval()
    for block in model.blocks if zero else ():  # copies of one layer are those of all
        nn.init.zeros_(block.attn.c_proj.weight)
    plain = _costs(model, tmp_path / "a.kvt", None)
    cast = _costs(model, tmp_path / "b.kvt", torch.bfloat16)
    assert [one.cached for one in cast] == [one.cached for one in plain]
    assert [one.weight_bytes for one in cast] == [one.weight_bytes for one in plain]
    assert all(one.cached.qkv and one.cached.mlp and not one.cached.other for one in cast)
