"""A part that a program calls beside its model attends elsewhere: no pass of the model is that."""

import pytest
import torch
from torch import nn

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import DIVERGED, check

TEXT = torch.tensor([[5, 6, 7, 8, 9, 10]])


class Two(nn.Module):
    """One model for a text, and one that generates by itself in between."""

    def __init__(self):
        super().__init__()
        self.large, self.small = tiny_model("llama"), tiny_model("gpt2")

    def forward(self, input_ids):
        return self.large(input_ids, use_cache=False)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_a_part_that_generates_without_a_cache_is_compared_with_no_pass_of_the_model(
    tmp_path, mode
):
    model, path = Two().eval(), tmp_path / "two.kvt"
    with torch.no_grad(), kvtrace.record(model, path, recompute=mode):
        model(TEXT)
        model.small.generate(TEXT[:, :3], max_new_tokens=3, do_sample=False, use_cache=False)
        model(TEXT[:, 1:])
    trace = kvtrace.open(path)
    assert check(trace).verdict != DIVERGED
    assert "GPT2LMHeadModel is called by itself, too" in " ".join(one.text for one in trace.notes)
    compared = [step.number for step in trace if trace.compared(step.number) is not None]
    assert compared == [0, len(trace) - 1]


@pytest.mark.parametrize("length", [0, None])
def test_a_model_that_has_a_length_is_compared_whatever_its_length_says(tmp_path, length):
    class Long(Two):
        def __len__(self):
            if length is None:
                raise TypeError("no model of mine has a length")
            return length

    path = tmp_path / "long.kvt"
    model = Long().eval()
    with torch.no_grad(), kvtrace.record(model, path):
        model(TEXT)
        model.small(TEXT[:, :3])
    trace = kvtrace.open(path)
    assert [trace.compared(step.number) is not None for step in trace] == [True, False]
