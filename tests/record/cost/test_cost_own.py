"""What the recorder multiplies while it watches is no work of the model."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import kvtrace
from builders.attentions import Model, matmul
from builders.tiny_models import tiny_model


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
