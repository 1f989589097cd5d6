"""Masks that flex_attention is given: functions of indices, which say what is hidden."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import kvtrace
from builders.recorded import assert_attention_explains_itself
from builders.tiny_models import tiny_model
from builders.ways import padded, ready
from kvtrace.record.capture.attention.masks import MaskReader


def test_a_block_mask_is_the_table_that_its_function_says():
    def near(sequence, head, query, key):
        return (key <= query) & (key > query - 3) & (key >= sequence)

    mask = create_block_mask(near, 2, None, 5, 6, device="cpu")
    visible, bias = MaskReader().read(mask)
    one, query, key = torch.arange(2)[:, None, None], torch.arange(5)[:, None], torch.arange(6)
    expected = (key <= query) & (key > query - 3) & (key >= one)
    assert torch.equal(visible[:, 0], expected)
    assert bias is None


# of transformers, and of torch: it runs what would be compiled
@pytest.mark.filterwarnings("ignore")
def test_padding_and_windows_of_flex_attention_are_seen_at_every_step(tmp_path):
    model = ready(tiny_model("cohere2", attn_implementation="flex_attention"))
    with kvtrace.record(model, tmp_path / "run.kvt", recompute="off"):
        padded(model)()
    trace = kvtrace.open(tmp_path / "run.kvt")
    assert_attention_explains_itself(trace)
    windowed, plain = trace.visible(0, 0, 1), trace.visible(0, 3, 0)
    assert not windowed[..., -1, :4].any()
    assert not plain[..., :4].any()
    for step in trace:
        assert not trace.visible(step.number, 3, 0)[..., :4].any()
