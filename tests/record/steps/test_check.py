import math

import pytest
import torch
from msgspec.structs import replace

from builders.tiny_models import tiny_model
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.watch import Watch
from kvtrace.record.steps import check as module
from kvtrace.record.steps.check import SelfCheck, check, chosen


def naive(call):
    """One query at a time, by the definition."""
    sequences, heads, new, _ = call.queries.shape
    seq, groups = call.keys.shape[2], heads // call.keys.shape[1]
    out = torch.zeros(sequences, heads, new, call.values.shape[3])
    for b in range(sequences):
        for h in range(heads):
            for i in range(new):
                logits = []
                for j in range(seq):
                    q, k = call.queries[b, h, i].double(), call.keys[b, h // groups, j].double()
                    score = float(q @ k) * call.scale
                    if call.softcap:
                        score = call.softcap * math.tanh(score / call.softcap)
                    if call.bias is not None:
                        score += float(call.bias.expand(sequences, heads, new, seq)[b, h, i, j])
                    hidden = call.causal and j > i + seq - new
                    if call.visible is not None:
                        shown = call.visible.expand(sequences, heads, new, seq)
                        hidden = hidden or not shown[b, h, i, j]
                    logits.append(-math.inf if hidden else score)
                extra = [] if call.sinks is None else [float(call.sinks[h])]
                weights = torch.tensor([*logits, *extra], dtype=torch.float64).softmax(0)[:seq]
                out[b, h, i] = weights.float() @ call.values[b, h // groups]
    return out


def made(**fields):
    torch.manual_seed(0)
    call = AttentionCall(
        module="attn",
        call=0,
        layer=0,
        kind="self",
        queries=torch.randn(2, 4, 3, 8),
        keys=torch.randn(2, 2, 5, 8),
        values=torch.randn(2, 2, 5, 6),
        output=torch.zeros(()),
        scale=0.3,
        causal=True,
    )
    call = replace(call, **fields)
    return replace(call, output=naive(call))


HEALTHY = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": torch.linspace(-1, 1, 4 * 5).reshape(1, 4, 1, 5)},
    "sinks": {"sinks": torch.tensor([0.0, 1.0, -1.0, 2.0])},
    "window": {"visible": torch.ones(3, 5, dtype=torch.bool).triu(1)[None, None]},
    "padding": {"visible": torch.tensor([[True] * 5, [False] * 2 + [True] * 3])[:, None, None]},
    "not causal": {"causal": False},
}


@pytest.mark.parametrize("fields", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_call_is_explained(fields):
    call = made(**fields)
    error, scale = check([call], [0])[0]
    assert error < 1e-5
    assert scale == pytest.approx(float(call.output.abs().max()))


WRONG = {
    "scale": {"scale": 0.4},
    "mask": {"causal": False},
    "keys": {"keys": torch.zeros(2, 2, 5, 8)},
    "softcap": {"softcap": 1.0},
    "sinks": {"sinks": torch.ones(4)},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG.keys())
def test_anything_recorded_wrong_shows(fields):
    error, scale = check([replace(made(), **fields)], [0])[0]
    assert error > 0.01 * scale


def test_calls_of_one_shape_are_told_apart():
    good, bad = made(), replace(made(), values=torch.ones(2, 2, 5, 6))
    found = check([good, bad, good], [3, 5, 9])
    assert list(found) == [3, 5, 9]
    assert found[3] == found[9]
    assert found[3][0] < 1e-5 < found[5][0]


def test_a_row_that_sees_nothing_is_not_judged():
    visible = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    visible[0, 0, 0] = False
    call = replace(made(), visible=visible)
    error, _ = check([replace(call, output=made().output)], [0])[0]
    assert error < 1e-5


def test_nan_is_nan_and_not_fine():
    call = made()
    call.output[0, 0, 0, 0] = math.nan
    error, _ = check([call], [0])[0]
    assert math.isnan(error)


def test_a_long_prefill_is_sampled_from_first_to_last_row(monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORES", 2 * 4 * 5 * 2)
    call = made()
    assert check([call], [0])[0][0] < 1e-5
    for row, seen in ((0, True), (1, False), (2, True)):
        output = call.output.clone()
        output[:, :, row] += 1
        assert (check([replace(call, output=output)], [0])[0][0] > 0.5) is seen


def test_first_forwards_are_checked_whole_then_ever_fewer():
    every = [len(chosen(number, 12)) for number in range(65)]
    assert every[:3] == [12, 12, 12]
    assert every[64] == every[32] == every[16] == 12
    assert every[3] == every[5] == 0
    assert [chosen(number, 12)[0] for number in (24, 40, 48)] == [3, 5, 6]
    assert sum(every) < 65 * 2


@pytest.mark.parametrize(
    "model_type", ["gpt2", "llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"]
)
def test_models_explain_themselves(model_type):
    model = tiny_model(model_type)
    found, checker = [], SelfCheck()
    ids = torch.randint(3, 90, (2, 12))
    with torch.no_grad(), Watch(model, lambda forward: found.append(checker(forward))):
        model.generate(ids, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert len(found[0]) == len(found[1]) > 0
    assert all(error <= 1e-5 * max(scale, 1) for one in found for error, scale in one.values())
