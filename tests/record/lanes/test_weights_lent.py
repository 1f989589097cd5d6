"""Weights that a model is lent for a call, as `torch.func.functional_call` does it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import ready
from kvtrace.analysis.checks.verdict import check

IDS = torch.tensor([[5, 9, 3, 7, 11, 4], [1, 2, 3, 4, 5, 6]])


class Model(nn.Module):
    """Takes its cache along."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, ids, past=None):
        x, kept = self.embed(ids), []
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if past is not None:
                k, v = (torch.cat(two, 2) for two in zip(past[number], (k, v), strict=True))
            kept.append((k, v))
            made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
            x = x + made.transpose(1, 2).flatten(2)
        return self.head(x), kept


def report(path):
    found = check(kvtrace.open(path))
    return found.verdict, found.steps, [one.name for one in found.findings]


@torch.no_grad()
def told(path, lent, spoil=None, met=False):
    model, ids, past = Model().eval(), IDS, None
    other = {name: one * 1.5 for name, one in model.named_parameters()}
    with kvtrace.record(path) if met else kvtrace.record(model, path):
        for step in range(4):
            given = lent(step, other)
            logits, past = functional_call(model, given, (ids,), {"past": past})
            if step == spoil:
                past[1][0][1, :, 3] += 1
            ids = logits[:, -1:].argmax(-1)
    return report(path)


WAYS = {
    "the same": lambda _, other: other,
    "equal ones each time": lambda _, other: {name: one.clone() for name, one in other.items()},
    "some": lambda _, other: {"head.weight": other["head.weight"]},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_lent_weights_is_compared_with_them(way, tmp_path):
    assert told(tmp_path / "a.kvt", WAYS[way]) == ("equal within rounding", 4, [])


def test_so_is_one_that_is_met_while_it_has_them(tmp_path):
    assert told(tmp_path / "a.kvt", WAYS["the same"], met=True) == ("equal within rounding", 4, [])


def test_a_row_that_changes_is_found_with_lent_weights(tmp_path):
    found = told(tmp_path / "a.kvt", WAYS["the same"], spoil=1)
    assert found == ("diverged", 4, ["OLD-ROWS-CHANGED"])


def test_other_weights_within_a_text_are_not_taken_for_a_bug(tmp_path):
    found = told(tmp_path / "a.kvt", lambda step, other: other if step < 2 else {})
    assert found[0] == "could not check"


@pytest.mark.parametrize("mode", ["once", "each"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # its output matrix is its embedding's, or not
def test_a_model_of_transformers_is_compared_with_the_weights_it_was_lent(kind, mode, tmp_path):
    model, past = ready(tiny_model(kind)), None
    other = {name: one * 1.5 for name, one in model.named_parameters()}
    own, ids = [id(one) for one in model.parameters()], IDS
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode), torch.no_grad():
        for _ in range(3):
            out = functional_call(model, other, (ids,), {"past_key_values": past})
            ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
    assert report(tmp_path / "a.kvt") == ("equal within rounding", 3, [])
    assert [id(one) for one in model.parameters()] == own
