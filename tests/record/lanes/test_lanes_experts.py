"""The referee of models whose experts are multiplied in groups, for which torch has no float64."""

import pytest
import torch

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, padded, ready
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.record.lanes.passes.autocast import GroupedProducts


@pytest.mark.parametrize("model_type", ["gpt_oss", "jamba", "deepseek_v3"])
def test_models_of_experts_have_a_referee(model_type, tmp_path):
    model = ready(tiny_model(model_type))
    with kvtrace.record(model, tmp_path / "a.kvt", referee=True):
        model.generate(IDS, do_sample=False, max_new_tokens=3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert all(trace.compared(number, "referee") is not None for number in trace.numbers)
    report = check(trace)
    assert report.verdict == EQUAL
    assert "recomputing itself is off from float64 by" in report.reason


@pytest.mark.parametrize(("seed", "times"), [(2, 4), (4, 5), (5, 6)])
def test_experts_that_rounding_chooses_are_chosen_alike_in_a_shorter_text(seed, times):
    model = tiny_model("gpt_oss", seed=seed, dtype=torch.bfloat16, attn_implementation="eager")
    for one in model.parameters():
        one.data.mul_(times if one.ndim > 1 else 1)
    report = kvtrace.check(ready(model), run=padded(model))
    assert report.verdict == EQUAL, report


def test_each_group_of_rows_has_its_own_weights():
    rows, weights = torch.rand(5, 3).double(), torch.rand(3, 3, 2).double()
    ends = torch.tensor([2, 2, 4], dtype=torch.int32)  # the second group is empty
    with GroupedProducts():
        product = torch.nn.functional.grouped_mm(rows, weights, offs=ends)
    expected = [rows[0] @ weights[0], rows[1] @ weights[0], rows[2] @ weights[2]]
    assert torch.allclose(product[:3], torch.stack(expected))
    assert torch.equal(product[4], torch.zeros(2).double())  # of no group


def test_narrower_types_are_left_to_torch():
    rows, weights = torch.rand(4, 16), torch.rand(2, 16, 16)
    ends = torch.tensor([1, 4], dtype=torch.int32)
    alone = torch.nn.functional.grouped_mm(rows, weights, offs=ends)
    with GroupedProducts():
        assert torch.equal(torch.nn.functional.grouped_mm(rows, weights, offs=ends), alone)
