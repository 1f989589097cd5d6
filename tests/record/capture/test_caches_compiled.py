"""A compiled model with a static cache is traced: its code runs eagerly meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM, StaticCache

import kvtrace
from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.ways import IDS, generate, ready
from kvtrace.analysis.checks import EQUAL, check


def one_layer():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return ready(LlamaForCausalLM(config).eval())


def decode(model, config):
    cache, ids, logits = StaticCache(config=config, max_cache_len=20), IDS, []
    with torch.no_grad():
        for _ in range(3):
            out = model(ids, past_key_values=cache, use_cache=True)
            ids = out.logits[:, -1:].argmax(-1)
            logits.append(out.logits[:, -1])
    return torch.cat(logits)


class Graphs:
    """A backend that runs what it is given as it is, and counts the graphs."""

    def __init__(self):
        self.num_made = 0

    def __deepcopy__(self, _):
        return self  # options are copied on their way to the compiler

    def __call__(self, graph, _):
        self.num_made += 1
        return graph.forward


def forward(model, **options):
    model.forward = torch.compile(model.forward, **options)
    return model


def module(model, **options):
    model.compile(**options)
    return model


def wrapper(model, **options):
    return torch.compile(model, **options)


def function_around(model, **options):
    return torch.compile(lambda *args, **kwargs: model(*args, **kwargs), **options)


def each_layer(model, **options):
    for layer in model.model.layers:
        layer.compile(**options)
    return model


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", [forward, module, wrapper, function_around, each_layer])
def test_a_compiled_model_is_traced_whole_and_its_graphs_are_good_afterwards(compiled, tmp_path):
    model = one_layer()
    expected = decode(model, model.config)
    graphs = Graphs()
    call = compiled(model, backend=graphs)
    before = decode(call, model.config)
    made = graphs.num_made
    trace, held, result = record(model, lambda: decode(call, model.config), tmp_path / "a.kvt")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    assert trace.cache_layer(0).capacity == 20
    assert any("compiled code was run eagerly" in text for text in trace.meta.not_recorded)
    assert torch.equal(decode(call, model.config), before)
    assert graphs.num_made == made > 0


def test_a_model_that_is_handed_over_compiled_is_computed_again_as_it_was_written(tmp_path):
    model = one_layer()
    call = torch.compile(model, backend=Graphs())
    with kvtrace.record(call, tmp_path / "a.kvt"):
        decode(call, model.config)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.model.name == "LlamaForCausalLM"
    assert [site.module for site in trace.meta.sites] == ["model.layers.0.self_attn"]
    assert check(trace).verdict == EQUAL


def test_what_generate_compiles_by_itself_is_traced(tmp_path):
    model = one_layer()
    expected = generate(model, cache_implementation="static")()
    graphs = Graphs()
    config = CompileConfig(backend=graphs, mode=None)
    config._compile_all_devices = True
    run = generate(model, cache_implementation="static", compile_config=config)
    trace, held, result = record(model, run, tmp_path / "a.kvt")
    assert graphs.num_made == 0
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert any("compiled code was run eagerly" in text for text in trace.meta.not_recorded)
    assert torch.equal(run(), expected)
    assert graphs.num_made > 0


def test_nothing_is_said_of_compiled_code_where_none_ran(tmp_path):
    model = one_layer()
    trace, _, _ = record(model, generate(model), tmp_path / "a.kvt")
    assert not any("compiled" in text for text in trace.meta.not_recorded)


def test_code_is_compiled_again_once_the_last_of_overlapping_recordings_is_over(tmp_path):
    graphs = Graphs()
    function = torch.compile(lambda x: x * 2 + 1, backend=graphs)
    one, other = (one_layer() for _ in range(2))
    first = kvtrace.record(one, tmp_path / "a.kvt", recompute="off")
    second = kvtrace.record(other, tmp_path / "b.kvt", recompute="off")
    first.__enter__()
    second.__enter__()
    try:
        one(IDS)
        first.__exit__(None, None, None)
        other(IDS)
        function(torch.ones(3))
        assert graphs.num_made == 0
    finally:
        second.__exit__(None, None, None)
    function(torch.ones(3))
    assert graphs.num_made == 1


def test_a_compiled_function_of_another_thread_works_before_and_after(tmp_path):
    graphs = Graphs()
    function = torch.compile(lambda x: x * 2 + 1, backend=graphs)
    model = one_layer()
    found = []

    def work():
        found.append(function(torch.ones(3)))

    def elsewhere():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return model(IDS)

    elsewhere()
    trace, _, _ = record(model, elsewhere, tmp_path / "a.kvt")
    elsewhere()
    assert graphs.num_made == 1
    assert all(torch.equal(one, torch.full((3,), 3.0)) for one in found)
    assert any("compiled code was run eagerly" in text for text in trace.meta.not_recorded)
