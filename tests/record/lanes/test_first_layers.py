"""Drafts that somebody makes with the first layers of the same model, set by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import WAYS, ready
from kvtrace.analysis.checks import EQUAL, check

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10]])


def first_layers(model, count, *args, **given):
    """What a draft says: the model is asked while it has the first layers only."""
    layers = model.model.layers
    model.model.layers = layers[:count]
    try:
        return model(*args, **given)
    finally:
        model.model.layers = layers


def drafted_and_verified(model, rounds, spoil=None):
    """Drafts are rejected; somebody may `spoil` the cache of all layers after each round."""
    whole, few, out = DynamicCache(), DynamicCache(), []
    token = model(PROMPT, past_key_values=whole).logits[:, -1:].argmax(-1)
    first_layers(model, 1, PROMPT, past_key_values=few)
    for _ in range(rounds):
        drafts = [token]
        for _ in range(2):
            logits = first_layers(model, 1, drafts[-1], past_key_values=few).logits
            drafts.append(logits[:, -1:].argmax(-1))
        found = model(torch.cat(drafts, 1), past_key_values=whole).logits.argmax(-1)
        token = found[:, :1]
        whole.crop(-2)
        few.crop(-1)
        if spoil is not None:
            spoil(whole)
        out.append(int(token))
    return out


def spoiled(cache):
    """As if the memory of a row had been used again."""
    cache.layers[1].values = cache.layers[1].values.clone()
    cache.layers[1].values[:, :, 2] = 0


@pytest.mark.parametrize("mode", ["once", "each"])
def test_drafts_of_the_first_layers_are_no_change_of_weights(mode, tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        expected = drafted_and_verified(model, 3)
        with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
            assert drafted_and_verified(model, 3) == expected
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [note.text for note in trace.notes] == []
    assert all(trace.compared(number) is not None for number in trace.numbers)
    assert check(trace).findings == ()


def test_what_is_wrong_beside_drafts_is_found(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        drafted_and_verified(model, 3, spoiled)
    (found, *_) = check(kvtrace.open(tmp_path / "a.kvt")).findings
    assert (found.step, found.layer, found.tensor) == (7, 1, "v")


def test_drafts_by_early_exit_are_checked_beside_each_step_by_all_layers(tmp_path):
    model = ready(sharp_model())
    run = WAYS["early exit"](model)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"):
        run()
    layers = model.config.num_hidden_layers
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [len(step.attending) < layers for step in trace].count(True) > 0
    report = check(trace)
    assert (report.verdict, report.findings) == (EQUAL, ())


def sharp_model():
    """One whose drafts are often rejected, and as often taken."""
    model = tiny_model("llama")
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=numbers) / weight.shape[-1] ** 0.5)
    return model
