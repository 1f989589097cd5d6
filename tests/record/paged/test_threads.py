"""The engine runs in its own thread; recording begins and ends around it, and leaves nothing."""

from __future__ import annotations

import torch
from transformers import GenerationConfig
from transformers.generation.continuous_batching import cache, input_outputs, requests
from transformers.generation.continuous_batching.model_runner import ModelRunner

import kvtrace
from builders.device import DEVICE
from builders.engines import GREEDY, after_tokens, batched, engine_model, settings
from kvtrace.analysis.checks import EQUAL, check

LONG_S = 300
"""A limit for waiting that no machine reaches."""


class Engine:
    """An engine that a test talks to."""

    def __init__(self, model, new=40):
        config = GenerationConfig(**{**GREEDY, "max_new_tokens": new})
        self.manager = model.init_continuous_batching(
            generation_config=config, continuous_batching_config=settings(num_blocks=64)
        )

    def __enter__(self):
        self.manager.start()
        return self

    def __exit__(self, *_):
        self.manager.stop(block=True)
        self.manager.destroy()

    def ask(self, name, prompt):
        self.manager.add_request(prompt, request_id=name)

    def tokens(self, name):
        """All tokens of a request, once it is over."""
        found = self.manager.get_result(name, timeout=LONG_S)
        assert found is not None, f"{name} did not end in {LONG_S} s"
        return list(found.generated_tokens)


def untouched():
    """The engine's own methods, as they are now."""
    return (
        cache.PagedAttentionCache.update,
        requests.RequestState.update_and_check_completion,
        input_outputs.ContinuousBatchingIOs.prepare_batch_tensors,
    )


def hooks(model):
    return [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]


def test_a_recording_that_ends_before_the_engine_has_whole_steps_and_lets_it_go_on(tmp_path):
    model = engine_model("llama")
    methods, before = untouched(), hooks(model)
    with Engine(model) as engine:
        with kvtrace.record(model, tmp_path / "a.kvt"), after_tokens("one", 5) as has_some:
            engine.ask("one", [7, 3, 21, 9])
            assert has_some.wait(LONG_S)
        assert untouched() == methods
        assert hooks(model) == before
        tokens = engine.tokens("one")
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.ending is not None
    assert trace.ending.reason == "done"
    fed = [token for step in trace for token in step.tokens[0]]
    assert len(fed) >= 8
    assert fed == [7, 3, 21, 9, *tokens][: len(fed)]
    assert all(trace.compared(step.number) is not None for step in trace)
    assert list(batched(model, [[7, 3, 21, 9]], new=40).values()) == [tokens]


def test_a_recording_that_begins_when_a_request_is_under_way_says_what_it_read(tmp_path):
    model = engine_model("llama")
    recording = kvtrace.record(model, tmp_path / "a.kvt", recompute="off")
    with Engine(model) as engine, after_tokens("one", 5, recording.__enter__):
        engine.ask("one", [7, 3, 21, 9])
        engine.tokens("one")
        recording.__exit__(None, None, None)
    trace = kvtrace.open(tmp_path / "a.kvt")
    first = trace.step(trace.numbers[0])
    assert first.parent is None
    assert first.positions[0] == (9,)
    group = first.caches[0]
    assert group.rewritten == first.positions[0][0]
    assert trace.cache(first.number, 0).positions.tolist() == list(range(first.positions[0][0] + 1))


def test_an_engine_that_is_stopped_while_it_runs_leaves_a_whole_trace(tmp_path):
    model = engine_model("llama")
    with kvtrace.record(model, tmp_path / "a.kvt"), after_tokens("one", 3) as has_some:
        engine = Engine(model, new=200)
        engine.manager.start()
        engine.ask("one", [7, 3, 21, 9])
        assert has_some.wait(LONG_S)
        engine.manager.stop(block=True, hard_stop=True)
        engine.manager.destroy()
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.ending is not None
    assert len(trace) >= 3
    assert not trace.damage
    assert [step.parent for step in trace] == [None, *range(len(trace) - 1)]


def test_a_request_may_join_while_others_decode(tmp_path):
    model = engine_model("llama")
    with kvtrace.record(model, tmp_path / "a.kvt"), Engine(model, new=12) as engine:
        with after_tokens("early", 4, lambda: engine.ask("late", [5, 40, 11])):
            engine.ask("early", [7, 3, 21, 9])
            assert engine.tokens("early")
        assert engine.tokens("late")
    trace = kvtrace.open(tmp_path / "a.kvt")
    forwards = {}
    for step in trace:
        forwards.setdefault(step.packed.request, []).append(step.packed.forward)
    assert forwards["early"][0] == 0
    assert forwards["late"][0] >= 4
    assert set(forwards["early"]) & set(forwards["late"])


def test_without_a_model_at_hand_every_forward_of_the_engine_is_recorded(tmp_path):
    model = engine_model("llama")
    with kvtrace.record(tmp_path / "a.kvt", recompute="off"):
        batched(model, [[7, 3, 21, 9], [5, 40]], new=3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.packed.forward for step in trace] == [0, 0, 1, 1, 2, 2]
    assert not any("continuous batching" in text for text in trace.meta.not_recorded)


def test_an_engine_that_attends_eagerly_may_run_on_while_its_tokens_are_recomputed(tmp_path):
    model = engine_model("llama", attn_implementation="eager")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"):
        expected = batched(model, [[7, 3, 21, 9], [5, 40]], new=3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 6
    assert all(trace.compared(step.number) is not None for step in trace)
    assert check(trace).verdict == EQUAL  # later tokens were hidden, though the engine makes masks
    assert batched(model, [[7, 3, 21, 9], [5, 40]], new=3) == expected


def test_while_a_recording_runs_the_model_is_called_where_a_graph_would_be_replayed(tmp_path):
    runner = ModelRunner.__new__(ModelRunner)
    runner._compiled_varlen, runner.use_cuda_graph_varlen = None, True
    assert runner._get_forward_fn(use_block_table=False)[1]
    with kvtrace.record(engine_model("llama"), tmp_path / "a.kvt", recompute="off"):
        assert not runner._get_forward_fn(use_block_table=False)[1]
    assert runner._get_forward_fn(use_block_table=False)[1]


def test_two_engines_one_after_the_other_do_not_mix_their_requests(tmp_path):
    model = engine_model("llama")
    with kvtrace.record(model, tmp_path / "a.kvt"):
        first = batched(model, [[7, 3, 21, 9]], new=3)
        second = batched(model, [[7, 3, 21, 9]], new=3)
    assert list(first.values()) == list(second.values())
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.parent for step in trace] == [None, 0, 1, None, 3, 4]


def test_a_batch_and_plain_generate_may_take_turns(tmp_path):
    model = engine_model("llama")
    ids = torch.tensor([[7, 3, 21, 9]], device=DEVICE)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.generate(ids, max_new_tokens=3, do_sample=False)
        batched(model, [[7, 3, 21, 9], [5, 40]], new=3)
        model.generate(ids, max_new_tokens=3, do_sample=False)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.packed is None for step in trace] == [True] * 3 + [False] * 6 + [True] * 3
    assert [step.parent for step in trace][:3] == [None, 0, 1]
    assert [step.parent for step in trace][-3:] == [None, 9, 10]
    assert all(trace.compared(step.number) is not None for step in trace)
