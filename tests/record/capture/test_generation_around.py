"""What may stand around a model that generates: autocast, offloading, other threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import kvtrace
from builders.recorded import assert_caches_agree, record
from builders.tiny_models import tiny_model
from builders.ways import IDS, generate, ready
from kvtrace.analysis.checks.report import EQUAL
from kvtrace.analysis.checks.verdict import check
from kvtrace.trace import Tensor


@pytest.fixture
def model():
    return ready(tiny_model("llama"))


def largest(trace):
    return max(np.nanmax(trace.compared(number).relative) for number in trace.numbers)


def test_a_run_under_autocast_is_computed_again_under_autocast(model, tmp_path):
    run = generate(model)

    def under():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run()

    trace, held, _ = record(model, under, tmp_path / "a.kvt", recompute="once")
    assert_caches_agree(trace, held)
    lane = trace.meta.lane("recomputed")
    assert lane.reason.startswith("bfloat16 rounding")
    assert largest(trace) <= lane.tolerance
    assert check(trace).verdict == EQUAL


def test_the_referee_of_a_run_under_autocast_is_as_exact_as_ever(model, tmp_path):
    run = generate(model)
    with kvtrace.record(model, tmp_path / "a.kvt", referee=True), torch.autocast("cpu"):
        run()
    with kvtrace.record(model, tmp_path / "b.kvt", referee=True):
        run()
    under, plain = kvtrace.open(tmp_path / "a.kvt"), kvtrace.open(tmp_path / "b.kvt")
    rows = [one.reference(0, 0, "referee").rows(0, Tensor.KEYS) for one in (under, plain)]
    assert np.array_equal(*rows)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_that_are_elsewhere_between_calls_are_computed_with_again(model, tmp_path, where):
    import accelerate

    expected = generate(model)()
    if where == "disk":
        accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
    else:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    trace, held, result = record(model, generate(model), tmp_path / "a.kvt", recompute="once")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert not trace.notes
    assert largest(trace) <= trace.meta.lane("recomputed").tolerance


def test_a_second_thread_in_the_middle_of_a_run_gets_its_text_and_is_said_to_be_left_out(
    model, tmp_path
):
    options = {"do_sample": False, "max_new_tokens": 4}
    expected = [model.generate(ids, **options) for ids in (IDS, IDS + 1)]
    found, faults = {}, []
    entered, over = threading.Event(), threading.Event()

    def other():
        try:
            assert entered.wait(60)
            found[1] = model.generate(IDS + 1, **options)
        except BaseException as error:
            faults.append(error)
        finally:
            over.set()

    def hold(_module, _args):
        """The first thread is within its first forward until the other one has its whole text."""
        if threading.current_thread() is not thread and not entered.is_set():
            entered.set()
            assert over.wait(60)

    thread = threading.Thread(target=other)
    handle = model.model.layers[1].register_forward_pre_hook(hold)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        thread.start()
        found[0] = model.generate(IDS, **options)
        thread.join()
    handle.remove()
    assert faults == []
    assert all(torch.equal(found[one], expected[one]) for one in (0, 1))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 4
    assert trace.meta.model.class_name == "LlamaForCausalLM"
    assert any("thread" in text for text in trace.meta.not_recorded)


def test_two_threads_in_the_same_module_at_once_are_not_mixed_up(model, tmp_path):
    options = {"do_sample": False, "max_new_tokens": 4}
    expected = [model.generate(ids, **options) for ids in (IDS, IDS[:, :-2] + 1)]
    found, faults = {}, []
    inside, left = threading.Barrier(2, timeout=60), threading.Event()
    begun, met = threading.Event(), threading.local()
    rotary, forward = model.model.rotary_emb, model.model.rotary_emb.forward

    def other():
        try:
            assert begun.wait(60)
            found[1] = model.generate(IDS[:, :-2] + 1, **options)
        except BaseException as error:
            faults.append(error)

    def held(*args, **kwargs):
        """Both are in here at once; the first thread leaves first, and the other while it waits."""
        if not hasattr(met, "once"):
            met.once = True
            begun.set()
            inside.wait()
            if threading.current_thread() is thread:
                assert left.wait(60)
        return forward(*args, **kwargs)

    def go_on(_module, _args):
        if threading.current_thread() is not thread and not left.is_set():
            left.set()
            thread.join()

    thread = threading.Thread(target=other)
    rotary.forward = held
    handle = model.model.layers[0].register_forward_pre_hook(go_on)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        thread.start()
        found[0] = model.generate(IDS, **options)
    handle.remove()
    del rotary.forward
    assert faults == []
    assert all(torch.equal(found[one], expected[one]) for one in (0, 1))
    trace = kvtrace.open(tmp_path / "a.kvt")
    steps = [trace.step(number) for number in trace.numbers]
    assert [step.phase for step in steps] == ["prefill", "decode", "decode", "decode"]
    chosen = [step.chosen[0] for step in steps]
    assert chosen == found[0][0, -4:].tolist()


class Interrupt(BaseException):
    """As Ctrl-C is: no hook is called for it."""


@pytest.mark.parametrize("where", ["model.rotary_emb", "model.layers.1.mlp"])
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("named", [True, False])
def test_after_an_interrupted_generation_the_next_one_is_recorded(tmp_path, where, at, named):
    model = ready(tiny_model("llama"))
    inner, calls = model.get_submodule(where).forward, []

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Interrupt
        return inner(*args, **kwargs)

    model.get_submodule(where).forward = forward
    expected = generate(ready(tiny_model("llama")))()
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack
    with kvtrace.record(*[model][:named], tmp_path / "a.kvt"):
        with pytest.raises(Interrupt):
            generate(model)()
        assert not modes()
        assert torch.equal(generate(model)(), expected)
    trace = kvtrace.open(tmp_path / "a.kvt")
    new = expected.shape[1] - IDS.shape[1]
    assert len(trace) == at - 1 + new
    report = check(trace)
    assert (report.verdict, report.steps) == (EQUAL, len(trace))
