"""Attention of each token to what layers made of it is none over the text."""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.tiny_models import tiny_model
from builders.ways import generate, ready
from kvtrace.analysis.checks import EQUAL, check


class Across(nn.Module):
    """Mixes what goes into a layer's MLP with what comes out; tokens stand where heads do."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, rows):
        both = torch.stack([rows, self.inside(rows)], dim=-2)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        out, _ = attend(self, rows.unsqueeze(-2), both, both, None, scaling=0.1)
        return out.transpose(1, 2).squeeze(-2)


def test_tokens_that_attend_to_layers_are_no_heads(tmp_path):
    model = ready(tiny_model("llama"))
    for layer in model.model.layers:
        layer.mlp = Across(layer.mlp)
    trace, held, _ = record(model, generate(model), tmp_path / "a.kvt", recompute="once")
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert [site.module for site in trace.meta.sites] == [
        f"model.layers.{n}.self_attn" for n in range(4)
    ]
    assert trace.meta.unseen == ()
    assert check(trace).verdict == EQUAL
