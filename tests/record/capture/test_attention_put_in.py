"""A model of transformers whose attention somebody has replaced by modules that keep a cache."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import ready
from kvtrace.analysis.checks import EQUAL, check

PROMPT, STEPS = torch.arange(3, 12)[None], 5


class Context:
    """What the loop tells all layers: whether this is the prompt."""

    def __init__(self):
        self.prefill = True


class Core(nn.Module):
    """Attends for all layers, and keeps the rows of each."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def forward(self, layer, q, k, v, prefill):
        if not prefill:
            old = self.rows[layer]
            k, v = torch.cat((old[0], k), 2), torch.cat((old[1], v), 2)
        self.rows[layer] = k, v
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=prefill)


class SharingAttention(nn.Module):
    def __init__(self, theirs, layer, core, context):
        super().__init__()
        self.q, self.k, self.v, self.o = theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj
        self.dim, self.layer, self.core, self.context = theirs.head_dim, layer, core, context

    def forward(self, hidden_states, **rest):
        shape = (*hidden_states.shape[:2], -1, self.dim)
        q, k, v = (
            one(hidden_states).view(shape).transpose(1, 2) for one in (self.q, self.k, self.v)
        )
        out = self.core(self.layer, q, k, v, self.context.prefill)
        return self.o(out.transpose(1, 2).flatten(2)), None


@pytest.fixture
def trace(tmp_path):
    model, context, core = ready(tiny_model("llama")), Context(), Core()
    for number, layer in enumerate(model.model.layers):
        layer.self_attn = SharingAttention(layer.self_attn, number, core, context)
    path, ids = tmp_path / "a.kvt", PROMPT
    with kvtrace.record(model, path), torch.no_grad():
        for _ in range(STEPS):
            logits = model(ids, use_cache=False).logits
            context.prefill, ids = False, logits[:, -1:].argmax(-1)
    return kvtrace.open(path)


def test_it_is_computed_again_as_it_was_before_its_first_call(trace):
    report = check(trace)
    assert (report.verdict, report.steps) == (EQUAL, STEPS)


def test_layers_whose_attention_ran_in_a_part_they_share_are_not_called_unseen(trace):
    assert trace.meta.unseen == ()
    assert {one.module for one in trace.meta.sites} == {"model.layers.0.self_attn.core"}
