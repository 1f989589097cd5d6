"""What the recorder multiplies while it watches is no work of the model."""

import torch

import kvtrace
from builders.tiny_models import tiny_model


def test_following_rows_by_content_is_no_matrix_product_of_the_model(tmp_path):
    model = tiny_model("bloom")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, min_new_tokens=4)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert {site.level for site in trace.meta.sites} != {1}
    assert [step.cost.cached.other for step in trace] == [0] * 4
    assert all(step.cost.cached.qkv for step in trace)
