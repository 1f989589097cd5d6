"""A compiled model with a static cache is traced: its code runs eagerly meanwhile."""

from __future__ import annotations

import pytest
import torch
from transformers import StaticCache

from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready


def decode(model, config):
    cache, ids, logits = StaticCache(config=config, max_cache_len=20), IDS, []
    with torch.no_grad():
        for _ in range(4):
            out = model(ids, past_key_values=cache, use_cache=True)
            ids = out.logits[:, -1:].argmax(-1)
            logits.append(out.logits[:, -1])
    return torch.cat(logits)


def compile_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


def compile_module(model):
    model.compile(backend="eager")


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("compiled", [compile_forward, compile_module])
def test_a_compiled_model_is_traced_whole(compiled, ran_before, tmp_path):
    torch.set_num_threads(1)
    model = ready(tiny_model("llama"))
    expected = decode(model, model.config)
    compiled(model)
    if ran_before:
        torch.testing.assert_close(decode(model, model.config), expected)
    trace, held, result = record(model, lambda: decode(model, model.config), tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert trace.cache_layer(0).capacity == 20
    assert any("compiled code was run eagerly" in text for text in trace.meta.not_recorded)


def test_compiled_code_is_compiled_again_after_the_recording(tmp_path):
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph.forward

    torch.compiler.reset()
    function = torch.compile(lambda x: x * 2 + 1, backend=backend)
    model = ready(tiny_model("llama"))
    with torch.no_grad():
        record(model, lambda: (model(IDS), function(torch.ones(3))), tmp_path / "a.kvt")
        assert not calls
        function(torch.ones(3))
    assert len(calls) == 1
