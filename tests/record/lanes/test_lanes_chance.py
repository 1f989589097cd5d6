"""Models that draw random numbers, and runs that number their positions otherwise."""

import pytest
import torch

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import check
from kvtrace.files import open_trace


def run(model, path, positions=None, prompt=6, **options):
    """A prefill of six tokens, or more, and four decode steps."""
    tokens = torch.randperm(80, generator=torch.Generator().manual_seed(0))[None] + 3
    past, start = None, 0
    with kvtrace.record(model, path, keep_rows=True, **options), torch.no_grad():
        for end in range(prompt, prompt + 5):
            given = {} if positions is None else {"position_ids": positions(start, end)}
            out = model(tokens[:, start:end], past_key_values=past, use_cache=True, **given)
            past, start = out.past_key_values, end
    return check(open_trace(path))


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_dropout_that_is_left_on_is_no_look_ahead(tmp_path, recompute):
    torch.manual_seed(0)
    model = tiny_model("llama", attn_implementation="eager")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    report = run(model.train(), tmp_path / "a.kvt", recompute=recompute)
    assert report.findings[0].name == "WEIGHTS-NOT-NORMALISED"
    assert "NOT-CAUSAL" not in {one.name for one in report.findings}
    assert any("call model.eval()" in text for text in report.caveats)


def noisy(module, _, out):
    """The first rows of a longer text draw the same numbers where the seed is the same."""
    return torch.nn.functional.dropout(out, 0.1, True)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("layers.0.mlp", "UPSTREAM"),
        ("embed_tokens", "POSITION-EMBEDDING"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chance_outside_attention_is_told_and_raises_no_threshold(tmp_path, where, name, dtype):
    model = tiny_model("llama").to(dtype)
    hook = model.model.get_submodule(where).register_forward_hook(noisy)
    report = run(model, tmp_path / "a.kvt", referee=True)
    hook.remove()
    assert report.findings[0].name == name
    assert "random numbers (dropout, noise), not the cache" in report.findings[0].evidence


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "llama"])
def test_positions_one_too_small_are_one_finding(tmp_path, kind):
    def positions(start, end):
        return torch.arange(start, end)[None] - (1 if start else 0)

    report = run(tiny_model(kind), tmp_path / "a.kvt", positions)
    assert [one.name for one in report.findings] == ["POSITION-ROPE"]
    assert "was given position 5 for it, and slot 5 holds a row of that position" in (
        report.findings[0].evidence
    )


@pytest.mark.parametrize("told", [True, False])
def test_a_cache_that_is_dropped_on_the_way_is_history_lost(tmp_path, told):
    model, tokens = tiny_model("llama"), torch.arange(3, 13)[None]
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True), torch.no_grad():
        for start, end in ((0, 6), (6, 7)):
            given = {"position_ids": torch.arange(start, end)[None]} if told else {}
            model(tokens[:, start:end], use_cache=True, **given)  # nobody passes the cache on
    found = [(one.name, one.step) for one in check(open_trace(tmp_path / "a.kvt")).findings]
    # a step that is not told its position may as well begin another text
    assert found == ([("HISTORY-LOST", 1)] if told else [])


class Rounding(torch.nn.Linear):
    """Rounds what it is given to few values a token, as layers with quantised activations do."""

    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 1023
        return super().forward((x / scale).round() * scale)


def rounding():
    torch.manual_seed(0)
    model = tiny_model("llama")
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, one in list(part.named_children()):
                if isinstance(one, torch.nn.Linear):
                    coarse = Rounding(one.in_features, one.out_features, bias=False)
                    coarse.weight.data = one.weight.data * 8
                    setattr(part, name, coarse)
    return model


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_activations_that_are_quantised_are_told_as_rounding(tmp_path, recompute):
    report = run(rounding(), tmp_path / "a.kvt", prompt=60, recompute=recompute)
    assert (report.findings, report.verdict) == ((), "equal within rounding")
    assert "rounding inside of the model" in report.reason


def test_a_bug_beyond_what_is_rounded_inside_is_named(tmp_path):
    def positions(start, end):
        return torch.arange(start, end)[None] - (1 if start else 0)

    report = run(rounding(), tmp_path / "a.kvt", positions, prompt=60)
    assert [one.name for one in report.findings] == ["POSITION-ROPE"]
