"""Recording without a model object: nothing of the program changes, and nothing is left behind."""

import copy
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace
from builders.commands import environment
from builders.custom_drives import STYLES, build, ids, through_the_cache
from builders.tiny_models import tiny_model
from kvtrace.errors import OutputExistsError
from kvtrace.record.ambient import outermost
from kvtrace.record.capture.replaced.compiled import EAGERLY
from kvtrace.record.capture.replaced.stand_in import as_written


@pytest.mark.parametrize("style", STYLES)
def test_recording_whatever_runs_changes_no_bit(style, tmp_path):
    plain = through_the_cache(style, build(style), ids(10), 5)
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        seen = through_the_cache(style, build(style), ids(10), 5)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    traces = recording.report.traces
    if style == "recurrent":
        assert (traces, recording.report.silent) == ((), {"RecurrentLM": 6})
    else:
        assert [(one.steps, one.texts, one.sites) for one in traces] == [(6, 1, 2)]
        trace = kvtrace.open(tmp_path / "a.kvt")
        assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_each_text_of_a_batch_is_a_prompt_and_samples_of_one_text_are_one(tmp_path):
    model = build("tuple_cat")
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        model(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
        model(torch.tensor([[1, 2, 3]] * 4))
    assert [(one.steps, one.texts) for one in recording.report.traces] == [(2, 4)]


def test_a_place_that_attends_with_a_cache_and_without_is_one_place(tmp_path):
    torch.manual_seed(0)
    model = tiny_model("llama")
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        for cached in (False, True):
            model.generate(ids(5) % 8, max_new_tokens=3, do_sample=False, use_cache=cached)
    told = recording.report.traces[0]
    assert (told.sites, told.texts) == (model.config.num_hidden_layers, 2)


@pytest.mark.parametrize("style", ["tuple_cat", "gqa_interleave", "einsum_heads"])
def test_what_is_computed_without_the_cache_after_it_was_used_is_right_by_itself(style, tmp_path):
    model = build(style)
    with kvtrace.record(tmp_path / "a.kvt"), torch.no_grad():
        through_the_cache(style, model, ids(10), 5)
        for length in range(5, 11):
            model(ids(10)[:, :length])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_texts_that_grow_are_each_computed_anew_into_the_buffer_that_an_earlier_one_left(tmp_path):
    model = build("index_copy")
    with kvtrace.record(tmp_path / "a.kvt"), torch.no_grad():
        through_the_cache("index_copy", model, ids(10), 5)
        for length in range(4, 10):
            model(ids(10)[:, :length], torch.arange(length))
        model(ids(10)[:, 9:], torch.tensor([9]))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_gradients_are_the_same_and_the_call_is_no_step(tmp_path):
    def gradients():
        model = build("tuple_cat")
        model(ids(8))[0].square().mean().backward()
        return [one.grad for one in model.parameters() if one.grad is not None]

    plain = gradients()
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        seen = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert recording.report.traces == ()
    assert not (tmp_path / "a.kvt").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_code_is_recorded_and_named(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        through_the_cache("tuple_cat", torch.compile(build("tuple_cat")), ids(8), 5)
    assert [one.model for one in recording.report.traces] == ["GPT"]
    assert EAGERLY in recording.report.said


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_modules_can_be_scripted_traced_and_defined_meanwhile(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):

        class Gate(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(4, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.sigmoid(self.inner(x))

        torch.jit.script(Gate())(torch.ones(2, 4))
        torch.jit.trace(Gate(), torch.ones(2, 4))
        original = as_written(Gate.forward)
    assert Gate.forward is original


class Scored(nn.Module):
    """Asks for a name of this file, and attends."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return self.mix(F.softmax(x @ x.transpose(-1, -2), -1) @ x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", [torch.jit.script, lambda one: torch.jit.trace(one, ids(6))])
def test_what_torch_jit_makes_of_a_model_is_the_same_and_named(way, tmp_path):
    torch.manual_seed(0)
    model = Scored()
    plain = way(model)
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        seen = way(model)
        out = seen(ids(6))
    kinds = [[node.kind() for node in one.graph.nodes()] for one in (seen, plain)]
    assert kinds[0] == kinds[1]
    assert torch.equal(out, plain(ids(6)))
    assert recording.report.traces == ()
    assert [said.split(" and ")[0] for said in recording.report.said] == [
        "Scored: torch.jit runs it"
    ]


def test_what_is_exported_meanwhile_is_the_graph_that_it_is_alone(tmp_path):
    model = Scored().eval()

    def exported():
        graph = torch.export.export(model, (ids(6),)).graph
        return [str(node.target) for node in graph.nodes]

    plain = exported()
    with kvtrace.record(tmp_path / "a.kvt"):
        assert exported() == plain


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_watched_model_can_be_scripted(tmp_path):
    model = Scored().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        plain = model(ids(6))
        assert torch.equal(torch.jit.script(model)(ids(6)), plain)


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz:UserWarning")
def test_a_model_whose_matrices_are_no_parameters_is_no_table(tmp_path):
    model = torch.ao.quantization.quantize_dynamic(Scored().eval(), {nn.Linear})
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        model(ids(6))
    assert [one.model for one in recording.report.traces] == ["Scored"]


def test_calls_that_overlap_in_threads_are_steps_one_after_the_other(tmp_path):
    model, together = build("tuple_cat"), threading.Barrier(3)
    plain = through_the_cache("tuple_cat", build("tuple_cat"), ids(10), 5)
    found = []

    def work():
        together.wait()
        found.append(through_the_cache("tuple_cat", model, ids(10), 5))

    with kvtrace.record(tmp_path / "a.kvt") as recording:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for one in found for a, b in zip(plain, one, strict=True))
    assert [one.steps for one in recording.report.traces] == [3 * 6]
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_a_call_that_waits_for_one_in_another_thread_waits_for_kvtrace_once(tmp_path, monkeypatch):
    monkeypatch.setattr(outermost, "PATIENCE_S", 0.2)
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.pool = nn.Embedding(256, 4), ThreadPoolExecutor(1)
            self.head = nn.Linear(4, 20)

        def forward(self, ids):
            return self.head(self.pool.submit(inner, self.table(ids)).result())

    model = Pooled()
    plain = model(ids(5))
    with kvtrace.record(tmp_path / "a.kvt"):
        assert torch.equal(model(ids(5)), plain)
        assert torch.equal(model(ids(5)), plain)
    model.pool.shutdown()


def test_a_model_in_a_thread_of_its_own_is_recorded(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        work = threading.Thread(
            target=through_the_cache, args=("tuple_cat", build("tuple_cat"), ids(8), 5)
        )
        work.start()
        work.join()
    assert [one.steps for one in recording.report.traces] == [4]


def test_a_copy_or_a_pickle_of_a_watched_model_holds_nothing_of_ours(tmp_path):
    model = build("alibi")
    clean = pickle.dumps(model)
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        model(ids(5))
        saved, twin = pickle.dumps(model), copy.deepcopy(model)
        twin(ids(5))
    assert b"kvtrace.record" not in saved
    assert len(saved) == len(clean)
    assert not any(module._forward_hooks for module in twin.modules())
    assert [one.steps for one in recording.report.traces] == [1, 1]
    assert "__reduce_ex__" not in vars(nn.Module)


FORKS = """
import os, sys, torch, kvtrace
from kvtrace_fixtures.custom.alibi import build
model, ids = build(), torch.arange(5)[None]
with kvtrace.record(*[model][: "model" in sys.argv], "a.kvt") as recording:
    with torch.no_grad():
        model(ids)
        child = os.fork()
        if not child:
            model(ids)
            recording.__exit__(None, None, None)
            model(ids)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("what", ["model", "all"])
def test_a_fork_of_the_program_writes_nothing(tmp_path, what):
    # a process of its own with one thread: torch's own threads don't survive a fork
    command = [sys.executable, "-c", FORKS, what]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert (len(trace), trace.ending.reason, list(trace.damage)) == (1, "done", [])


def test_the_file_is_where_the_program_was_when_the_recording_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with kvtrace.record("a.kvt"), torch.no_grad():
        monkeypatch.chdir(tmp_path / "elsewhere")
        build("alibi")(ids(5))
    assert len(kvtrace.open(tmp_path / "a.kvt")) == 1


def test_after_an_exception_everything_is_as_before(tmp_path):
    def fails():
        with kvtrace.record(tmp_path / "a.kvt"), torch.no_grad():
            return model(ids(5) % 90).logits.shape[1] / 0

    model = tiny_model("gpt2")
    before = nn.Module.__call__, type(model).forward, nn.functional.cross_entropy
    with pytest.raises(ZeroDivisionError):
        fails()
    assert before == (nn.Module.__call__, type(model).forward, nn.functional.cross_entropy)
    assert not any(module._forward_hooks for module in model.modules())
    assert kvtrace.open(tmp_path / "a.kvt").ending.reason == "error"


def test_a_file_that_exists_is_not_replaced(tmp_path):
    (tmp_path / "a.kvt").write_text("mine")
    with pytest.raises(OutputExistsError, match="force=True"), kvtrace.record(tmp_path / "a.kvt"):
        pass


def test_recordings_in_one_another_see_the_same_and_not_each_other(tmp_path):
    model = build("gqa_interleave")
    kinds = {type(module) for module in model.modules()} | {nn.Module}
    before = [(vars(kind).get("forward"), kind.__call__) for kind in kinds]
    outer, middle = kvtrace.record(tmp_path / "a.kvt"), kvtrace.record(tmp_path / "b.kvt")
    with outer, middle, kvtrace.record(model, tmp_path / "c.kvt"):
        through_the_cache("gqa_interleave", model, ids(8), 5)
    traces = [kvtrace.open(tmp_path / f"{name}.kvt") for name in "abc"]
    assert [(len(trace), len(trace.meta.sites)) for trace in traces] == [(4, 2)] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.kvt", "b.kvt", "c.kvt"]
    assert "__init_subclass__" not in vars(nn.Module)
    assert [(vars(kind).get("forward"), kind.__call__) for kind in kinds] == before


def test_threads_that_overlap_disturb_no_model_and_are_named(tmp_path):
    model, plain = build("alibi"), through_the_cache("alibi", build("alibi"), ids(20), 5)
    found, together = [], threading.Barrier(3)

    def work():
        together.wait()
        found.append(through_the_cache("alibi", model, ids(20), 5))

    with kvtrace.record(model, tmp_path / "a.kvt"):
        with torch.no_grad():
            model(ids(3))
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    assert all(torch.equal(a, b) for one in found for a, b in zip(plain, one, strict=True))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert 1 < len(trace) < 1 + 3 * 16
    assert any("in other threads" in said for said in trace.meta.not_recorded)


def test_a_window_that_slides_over_a_text_is_no_new_prompt(tmp_path):
    model, tokens = build("head_modules"), ids(12)
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        for end in range(4, 12):
            model(tokens[:, max(0, end - 6) : end])
        model(ids(5)[:, 2:])
    assert [(one.steps, one.texts) for one in recording.report.traces] == [(9, 2)]


def test_threads_that_generate_at_once_are_recorded_from_their_first_token_on(tmp_path):
    model, start = tiny_model("llama").eval(), threading.Barrier(3)
    recording = kvtrace.record(tmp_path / "a.kvt", recompute="off")
    make = recording._make
    recording._make = lambda *given: (time.sleep(0.1), make(*given))[1]

    def work(first):
        start.wait()
        asked = torch.tensor([[first, first + 1, first + 2]])
        return model.generate(asked, max_new_tokens=4, do_sample=False, eos_token_id=None)

    with recording, ThreadPoolExecutor(3) as pool:
        list(pool.map(work, (5, 15, 25)))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 12
    assert sum(step.parent is None and step.new == 3 for step in trace) == 3


def test_the_first_text_after_training_costs_what_it_costs_without(tmp_path):
    model = build("tuple_cat")

    def flops(name, *before):
        with kvtrace.record(tmp_path / name):
            for one in before:
                one()
            through_the_cache("tuple_cat", model, ids(8), 5)
        return [step.cost.cached for step in kvtrace.open(tmp_path / name)]

    def train():
        with torch.enable_grad():
            model(ids(8))[0].square().mean().backward()
        model.zero_grad()

    assert flops("after.kvt", train, train) == flops("alone.kvt")
