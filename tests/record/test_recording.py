"""`kvtrace.record` turns whatever runs inside into a trace."""

from __future__ import annotations

import errno
import os

import pytest
import torch

import kvtrace
from builders.recorded import record
from builders.tiny_models import tiny_model
from kvtrace.errors import OutputExistsError, UsageError
from kvtrace.record.cost.meter import CostMeter
from kvtrace.trace import STOPPED, Tensor

IDS = torch.tensor([[7, 3, 21, 9, 30]])


@pytest.fixture(scope="module")
def model():
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    return model


def generate(model, **options):
    return lambda: model.generate(IDS, do_sample=False, max_new_tokens=4, **options)


def test_tokens_in_and_chosen_are_those_of_generate(model, tmp_path):
    trace, _, result = record(model, generate(model), tmp_path / "a.kvt")
    new = result[0, 5:].tolist()
    assert [step.tokens[0] for step in trace] == [(7, 3, 21, 9, 30), *((t,) for t in new[:-1])]
    assert [step.chosen for step in trace] == [(token,) for token in new]
    assert [step.phase for step in trace] == ["prefill", "decode", "decode", "decode"]
    assert trace.ending.reason == "length"


def test_the_recorded_rows_are_the_ones_attention_used(model, tmp_path):
    attention = model.model.layers[2].self_attn
    outputs = []
    handle = attention.o_proj.register_forward_pre_hook(lambda m, a: outputs.append(a[0].clone()))
    trace, _, _ = record(model, generate(model), tmp_path / "a.kvt")
    handle.remove()
    for number, output in enumerate(outputs):
        rows = torch.from_numpy(trace.output(number, 2).copy())
        assert torch.equal(rows.transpose(0, 1).reshape(output.shape[1:]), output[0])


def test_top_logits_are_the_highest_with_their_sum(model, tmp_path):
    logits = model(IDS).logits[0, -1].detach()
    trace, _, _ = record(model, lambda: model(IDS), tmp_path / "a.kvt")
    (top,) = trace.step(0).top
    best = logits.sort(descending=True)
    assert list(top.logits) == best.values[:20].tolist()
    assert top.ids[0] == int(best.indices[0])
    assert top.logsumexp == pytest.approx(float(logits.logsumexp(0)), rel=1e-6)


def test_a_loop_of_ones_own_is_recorded(model, tmp_path):
    def run():
        ids, cache = IDS, None
        for _ in range(3):
            out = model(ids, past_key_values=cache)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)

    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    assert [step.parent for step in trace] == [None, 0, 1]
    assert [trace.chosen(number) for number in (0, 1)] == [
        trace.step(1).tokens[0][0],
        trace.step(2).tokens[0][0],
    ]
    assert trace.chosen(2) is None
    assert trace.ending.reason == "done"


def test_steps_without_a_cache_follow_each_other_by_their_tokens(model, tmp_path):
    trace, _, result = record(model, generate(model, use_cache=False), tmp_path / "a.kvt")
    assert [step.parent for step in trace] == [None, 0, 1, 2]
    assert [step.chosen[0] for step in trace] == result[0, 5:].tolist()
    assert {layer.kind for layer in trace.meta.cache_layers} == {"uncached"}
    assert all(step.cost.cache_bytes == 0 for step in trace)


def test_an_exception_inside_passes_through_and_is_in_the_trace(model, tmp_path):
    path = tmp_path / "a.kvt"

    def run():
        with kvtrace.record(model, path, recompute="off"):
            model(IDS)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        run()
    trace = kvtrace.open(path)
    assert len(trace) == 1
    assert trace.ending.reason == "error"
    assert "ZeroDivisionError" in trace.ending.text


def test_the_steps_before_an_exception_are_compared(model, tmp_path):
    path = tmp_path / "a.kvt"

    def run():
        with kvtrace.record(model, path):
            model.generate(IDS, max_new_tokens=3)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        run()
    trace = kvtrace.open(path)
    assert trace.ending.reason == "error"
    assert [float(trace.compared(step.number).relative.max()) < 1e-4 for step in trace] == [
        True
    ] * 3


def test_an_existing_trace_is_kept_unless_forced(model, tmp_path):
    path = tmp_path / "a.kvt"
    record(model, generate(model), path)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError), kvtrace.record(model, path):
        raise AssertionError("not reached")
    assert path.read_bytes() == before
    with kvtrace.record(model, path, force=True, recompute="off"):
        model(IDS)
    assert len(kvtrace.open(path)) == 1


def test_stop_ends_the_trace_and_the_model_goes_on(model, tmp_path):
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off") as recording:
        model(IDS)
        recording.stop()
        model(IDS)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 1
    assert trace.ending.reason == "stopped"


def test_a_full_disk_ends_the_recording_and_not_the_run(model, tmp_path, monkeypatch):
    record(model, generate(model), tmp_path / "whole.kvt")
    room = (tmp_path / "whole.kvt").stat().st_size * 2 // 3
    written = 0

    def full(fd, raw, offset):
        nonlocal written
        written += len(raw)
        if written > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwrite(fd, raw, offset)

    from kvtrace.files.writer import TraceWriter
    from kvtrace.record import recording

    monkeypatch.setattr(
        recording,
        "TraceWriter",
        lambda path, meta, **more: TraceWriter(path, meta, write=full, **more),
    )
    expected = generate(model)()
    with (
        pytest.warns(RuntimeWarning, match="recording stopped"),
        kvtrace.record(model, tmp_path / "a.kvt", recompute="off"),
    ):
        result = generate(model)()
    assert torch.equal(result, expected)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert 0 < len(trace) < 4


def test_a_fault_of_ours_ends_the_recording_and_the_trace_says_which(model, tmp_path, monkeypatch):
    measure, path = CostMeter.measure, tmp_path / "a.kvt"

    def faulty(meter, measured):
        if measured.tokens == 7:
            raise ValueError("no such formula")
        return measure(meter, measured)

    monkeypatch.setattr(CostMeter, "measure", faulty)
    expected = model.generate(IDS, do_sample=False, max_new_tokens=4)
    with (
        pytest.warns(RuntimeWarning, match="step 2: ValueError: no such formula"),
        kvtrace.record(model, path),
    ):
        result = generate(model)()
    assert torch.equal(result, expected)
    trace = kvtrace.open(path)
    assert (len(trace), trace.ending) == (2, None)
    why = f"{STOPPED} step 2: ValueError: no such formula; what was recorded so far is kept"
    assert any(note.text.startswith(why) for note in trace.notes)
    assert why in kvtrace.check(path).reason


def test_a_model_without_weights_yet_is_asked_to_be_called_once(tmp_path):
    lazy = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LazyLinear(9))
    with pytest.raises(
        UsageError, match=r"1\.weight: a lazy layer has no weights before its first"
    ):
        kvtrace.record(lazy, tmp_path / "a.kvt")
    assert not (tmp_path / "a.kvt").exists()


def test_nan_in_the_rows_is_counted_where_it_is(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("nan")
    trace, _, _ = record(model, lambda: model(IDS), tmp_path / "a.kvt")
    counts = [count for group in trace.step(0).sites for count in group.nonfinite]
    assert counts[0] == 0
    # one feature of V in 5 rows, and of the 4 query heads' outputs that read that kv head
    heads = model.config.num_attention_heads // model.config.num_key_value_heads
    assert counts[1] == 5 + 5 * heads


def test_bfloat16_rows_keep_their_bits(tmp_path):
    model = tiny_model("llama").to(torch.bfloat16)
    cache = model(IDS).past_key_values
    trace, _, _ = record(model, lambda: model(IDS), tmp_path / "a.kvt")
    assert trace.cache_layer(0).dtype == "bfloat16"
    keys = torch.from_numpy(trace.rows(0, 0, Tensor.KEYS).copy())
    assert torch.equal(keys, cache.layers[0].keys[0].float())


def test_texts_of_tokens_are_said_once(model, tmp_path):
    asked = []

    def text(token):
        asked.append(token)
        return f"<{token}>"

    trace, _, _ = record(model, generate(model), tmp_path / "a.kvt", tokenizer=text)
    assert trace.token_text(21) == "<21>"
    assert len(asked) == len(set(asked))


def test_the_public_verb_is_callable_in_any_order_of_imports():
    import subprocess
    import sys

    code = "import kvtrace.record.capture.watch, kvtrace; assert callable(kvtrace.record)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("not a model", "a.kvt"), "model"), ((torch.nn.Linear(1, 1),), "path")],
)
def test_wrong_arguments_are_named(arguments, word):
    with pytest.raises(UsageError, match=word):
        kvtrace.record(*arguments)


def test_a_recorder_that_fails_ends_the_recording_and_not_the_run(model, tmp_path, monkeypatch):
    from kvtrace.record.cache import ledger

    def broken(*_):
        raise ZeroDivisionError("no such luck")

    expected = generate(model)()
    monkeypatch.setattr(ledger.Ledger, "step", broken)
    with (
        pytest.warns(RuntimeWarning, match="step 0: ZeroDivisionError: no such luck"),
        kvtrace.record(model, tmp_path / "a.kvt", recompute="off"),
    ):
        result = generate(model)()
    assert torch.equal(result, expected)


def test_memory_does_not_grow_with_the_number_of_steps(model, tmp_path):
    import gc

    def tensors():
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    counts = []
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off") as recording:
        ids, cache = IDS, None
        for number in range(40):
            out = model(ids, past_key_values=cache)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            if number in (10, 39):
                recording.recorder.flush()  # what waits is of a bounded number
                counts.append(tensors())
    assert recording.steps == 40
    assert counts[1] <= counts[0]  # others' may go meanwhile


def test_a_model_without_attention_says_so(tmp_path):
    model = tiny_model("mamba")
    trace, _, _ = record(model, lambda: model(IDS), tmp_path / "a.kvt")
    assert any("no attention" in sentence for sentence in trace.meta.not_recorded)


def test_modules_that_ran_unseen_are_named(tmp_path):
    from torch import nn

    class OddAttention(nn.Module):
        def forward(self, x):
            return x.cumsum(1)

    model = tiny_model("llama")
    model.model.layers[0].odd = OddAttention()
    inner = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: model.model.layers[0].odd(inner(x))
    trace, _, _ = record(model, lambda: model(IDS), tmp_path / "a.kvt")
    (sentence,) = trace.meta.unseen
    assert "model.layers.0.odd" in sentence


def test_an_argument_that_refuses_to_be_read_is_left_alone(tmp_path):
    # its config is a dataclass, and raises where layers differ
    model = tiny_model("gemma4_unified_text")
    with kvtrace.record(model, tmp_path / "a.kvt") as recording:
        model(torch.tensor([[5, 6, 7]]))
    assert recording.failure is None
    assert recording.steps == 1
