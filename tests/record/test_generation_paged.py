"""Continuous batching packs requests: until they can be told apart, that is what is said."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import ready


def test_packed_requests_are_never_shown_as_one_text(tmp_path):
    torch.set_num_threads(1)
    model = ready(tiny_model("llama"))
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run():
        prompts = [[7, 3, 21, 9, 30], [5, 40, 11]]
        found = model.generate_batch(prompts, generation_config=config, progress_bar=False)
        return [one.generated_tokens for one in found.values()]

    expected = run()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        assert run() == expected
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.sites == ()
    assert any("batched continuously" in text for text in trace.meta.not_recorded)
