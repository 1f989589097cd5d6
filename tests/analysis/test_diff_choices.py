"""Two runs whose routers choose otherwise: by rounding, or for a reason."""

import copy

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.two_runs.diff import diff
from kvtrace.trace import Picks

TOKENS = torch.randint(3, 120, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=128,
        num_local_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.15,
        attn_implementation="eager",
    )
    torch.manual_seed(3)
    return MixtralForCausalLM(config).eval()


def fed(model, path):
    """A prompt of 34 tokens, and six more."""
    with kvtrace.record(model, path), torch.no_grad():
        cache = model(TOKENS[:, :34], use_cache=True).past_key_values
        for at in range(34, 40):
            model(TOKENS[:, at : at + 1], past_key_values=cache)
    return kvtrace.open(path)


@pytest.fixture(scope="module")
def wide(model, tmp_path_factory):
    return fed(model, tmp_path_factory.mktemp("wide") / "a.kvt")


def test_a_step_keeps_what_its_routers_picked(model, wide):
    step = wide.step(0)
    gates = [f"model.layers.{layer}.mlp.gate" for layer in range(4)]
    assert [(one.module, one.options, one.picks) for one in step.picks] == [
        (gate, 8, 2) for gate in gates
    ]
    seen = []
    with model.model.layers[1].mlp.gate.register_forward_hook(lambda *a: seen.append(a[2][-1])):
        model(TOKENS[:, :34])
    assert [step.picks[1].picked(row) for row in range(34)] == [
        frozenset(one) for one in seen[0].tolist()
    ]


def test_another_expert_that_rounding_decided_is_named_and_no_difference(model, wide, tmp_path):
    found = diff(wide, fed(copy.deepcopy(model).to(torch.bfloat16), tmp_path / "b.kvt"))
    assert (found.verdict, found.first, found.finding.name) == (UNCHECKED, None, "TIE")
    assert "model.layers.0.mlp.gate picked option 5 of 8 in the old run" in found.reason


def test_a_router_that_chooses_otherwise_throughout_is_a_difference(model, wide, tmp_path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.gate.weight.copy_(other.model.layers[1].mlp.gate.weight.flip(1))
    found = diff(wide, fed(other.to(torch.bfloat16), tmp_path / "b.kvt"))
    assert (found.verdict, found.first.layer) == (DIVERGED, 2)
    assert "model.layers.1.mlp.gate picked" in found.finding.evidence


def test_one_other_choice_is_a_difference_where_nothing_was_rounded(model, wide, tmp_path):
    other = copy.deepcopy(model)
    gate = other.model.layers[1].mlp.gate
    turned = gate.forward

    def forward(hidden):
        logits, scores, indices = turned(hidden)
        if len(indices) == 1:
            indices = (indices + 1) % 8
        return logits, scores, indices

    gate.forward = forward
    found = diff(wide, fed(other, tmp_path / "b.kvt"))
    assert (found.verdict, found.first.layer, found.first.position) == (DIVERGED, 2, 34)


def test_the_same_choices_are_no_matter(model, wide, tmp_path):
    assert diff(wide, fed(model, tmp_path / "b.kvt")).verdict == EQUAL


@pytest.mark.parametrize("picks", [1, 2, 3])
def test_picks_of_any_token_are_read_without_the_others(picks):
    every = [[(7 * row + n) % 300 for n in range(picks)] for row in range(11)]
    one = Picks.of("gate", 0, 300, picks, [n for row in every for n in row])
    assert one.fits(11)
    assert not one.fits(12)
    assert [one.picked(row) for row in range(11)] == [frozenset(row) for row in every]


def test_picks_that_are_no_numbers_do_not_fit():
    one = Picks("gate", 0, 8, 2, "?" * 8)
    assert not one.fits(1)
