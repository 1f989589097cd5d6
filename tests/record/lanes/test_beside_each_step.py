"""A pass beside each step: it takes no part in what the step is said to cost, or to have moved."""

from __future__ import annotations

import pytest
import torch

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, PADDED, ready
from kvtrace.analysis.checks import EQUAL, check


def by_hand(model, path, mode):
    """The prompt and three tokens, by a loop of one's own."""
    with kvtrace.record(model, path, recompute=mode, force=True), torch.no_grad():
        cache = model(IDS).past_key_values
        for token in (5, 9, 7):
            cache = model(torch.tensor([[token]]), past_key_values=cache).past_key_values
    return [step.cost.cached.total for step in kvtrace.open(path)]


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2"])
def test_a_pass_beside_each_step_is_not_in_its_flops(name, tmp_path):
    model = ready(tiny_model(name))
    counts = {mode: by_hand(model, tmp_path / "a.kvt", mode) for mode in ("off", "once", "each")}
    assert counts["each"] == counts["once"] == counts["off"]


def test_equal_ids_of_a_padded_batch_that_change_places_are_not_one_text(tmp_path):
    # two texts of the same ids, of which one is padded, under beams: their paths change places
    model = ready(tiny_model("gemma3n_text"))
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"):
        model.generate(
            IDS.repeat(2, 1), attention_mask=PADDED, num_beams=2, max_new_tokens=4, do_sample=False
        )
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (EQUAL, ())
