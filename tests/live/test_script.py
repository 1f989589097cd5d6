"""Scripts of people, run untouched: what `kvtrace run` does once it has its own process."""

import concurrent.futures.thread
import json
import os
import sys
import threading
import types

import pytest
import torch
from torch import nn

import kvtrace
from builders.own_scripts import write
from kvtrace.live import script
from kvtrace.record.capture.replaced.compiled import EAGERLY
from kvtrace.trace import ROWS_LEFT_OUT


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    # a script ends as its process would: pools take no more work
    monkeypatch.setattr(threading, "_threading_atexits", [*threading._threading_atexits])
    monkeypatch.setattr(concurrent.futures.thread, "_shutdown", False)

    def run(*words, module=False, force=False, keep_rows=False):
        wishes = {
            "output": str(tmp_path / "a.kvt"),
            "recompute": "once",
            "keep_rows": keep_rows,
            "cpu": False,
            "module": module,
            "force": force,
        }
        before = nn.Module.__call__, torch.autograd.backward, nn.functional.cross_entropy
        code = script.main([json.dumps(wishes), *words])
        assert before == (nn.Module.__call__, torch.autograd.backward, nn.functional.cross_entropy)
        assert "__init_subclass__" not in vars(nn.Module)
        sys.modules.pop("model", None)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def agreed(trace):
    """Steps that were compared, all of them within rounding."""
    found = [trace.compared(number) for number in trace.numbers]
    assert not any((one.beyond > 0).any() for one in found if one is not None)
    return sum(one is not None for one in found)


def test_a_sampling_script_gives_its_texts_and_each_sample_is_a_prompt_of_its_own(run):
    code, out, err = run("sample.py")
    assert (code, out.count("---------------\n")) == (0, 2)
    trace = kvtrace.open("a.kvt")
    assert [step.number for step in trace if step.parent is None] == [0, 5]
    assert agreed(trace) == len(trace) == 10
    assert trace.step(0).texts[1] == "b"
    assert "GPT: 10 steps from 2 prompts, 2 places of attention, compared with recomputed" in err
    assert err.rstrip().endswith("kvtrace open a.kvt")


def test_a_script_without_a_tokenizer_has_ids_and_no_texts(run, tmp_path):
    lines = "import torch", "from model import GPT", "GPT().generate(torch.ones(1, 3).long(), 2)"
    (tmp_path / "plain.py").write_text("\n".join(lines))
    run("plain.py")
    assert [dict(step.texts) for step in kvtrace.open("a.kvt")] == [{}, {}]


def test_training_is_left_out_and_each_sample_is_compared_with_its_own_weights(run):
    code, out, err = run("train.py")
    assert code == 0
    assert "early:" in out
    trace = kvtrace.open("a.kvt")
    assert agreed(trace) == len(trace) == 8
    assert [len(step.tokens[0]) for step in trace] == [1, 2, 3, 4] * 2
    assert "GPT: 9 calls trained or measured a loss and were not recorded" in err


def test_attention_in_plain_functions_is_a_step_for_each_lookup(run):
    code, _, err = run("functional.py")
    assert code == 0
    trace = kvtrace.open("a.kvt")
    assert [step.tokens[0][:5] for step in trace] == [(3, 14, 15, 9, 2)] * 4
    assert [step.parent for step in trace] == [None, 0, 1, 2]
    assert {(site.module, site.num_heads) for site in trace.meta.sites} == {("attention", 3)}
    assert trace.meta.sites[0].code.startswith("functional.py:")
    assert agreed(trace) == 4
    assert "2 places of attention, compared with recomputed" in err


def test_a_method_other_than_forward_is_a_step_and_compared_with_forward(run):
    assert run("method.py")[0] == 0
    trace = kvtrace.open("a.kvt")
    assert agreed(trace) == len(trace) == 4
    assert [site.module for site in trace.meta.sites] == ["h.0.attn", "h.1.attn"]


@pytest.mark.parametrize(("name", "steps"), [("direct", 4), ("notebook", 3)])
def test_a_model_is_recorded_however_it_is_called(run, name, steps):
    assert run(f"{name}.py")[0] == 0
    assert agreed(kvtrace.open("a.kvt")) == steps


def test_generate_of_transformers_tells_its_prompt_and_its_last_token(run):
    code, out, _ = run("hugging_face.py")
    assert code == 0
    trace = kvtrace.open("a.kvt")
    assert [step.phase for step in trace] == ["prefill"] + ["decode"] * 4 + ["prefill"]
    assert trace.step(4).chosen == (json.loads(out.splitlines()[0])[0][-1],)
    assert agreed(trace) == 6


def test_a_large_trace_is_said_to_be_large_and_what_makes_it_smaller(run, monkeypatch):
    assert "is large" not in run("sample.py")[2]
    monkeypatch.setattr(script, "LARGE", 1000)
    code, _, err = run("sample.py", force=True)
    assert (code, err.count("a.kvt is large: ")) == (0, 1)
    assert 'with kvtrace.record("run.kvt"):' in err


def test_two_models_have_a_trace_each(run):
    code, _, err = run("draft.py")
    assert code == 0
    draft, target = kvtrace.open("a.kvt"), kvtrace.open("a-2.kvt")
    assert (len(draft), len(target)) == (6, 3)
    assert [len(trace.meta.sites) for trace in (draft, target)] == [2, 2]
    assert "a-2.kvt" in err


def test_arguments_name_and_exit_code_are_the_scripts_own(run, tmp_path):
    code, out, err = run("arguments.py", "-n", "3", "-o", "their")
    assert code == 7
    assert out == "['-n', '3', '-o', 'their'] __main__ their 5\n"
    assert kvtrace.open("a.kvt").ending.text == "the program ended with exit code 7"
    assert "compared with recomputed" in err


@pytest.mark.parametrize(
    "of_it", ["def __str__(self): raise ValueError", "__class__ = property(lambda self: 1 / 0)"]
)
def test_an_exception_that_can_not_be_asked_ends_a_script_as_without_us(run, tmp_path, of_it):
    text = f"class Odd(Exception):\n    {of_it}\nraise Odd\n"
    (tmp_path / "odd.py").write_text(text)
    code, _, err = run("odd.py")
    shown = [line for line in err.splitlines() if not line.startswith("kvtrace: ")]
    assert (code, shown[-1].partition(":")[0]) == (1, "Odd")
    assert not [line for line in shown if line.startswith("  File") and "odd.py" not in line]


def test_a_module_is_run_as_python_runs_it(run):
    code, out, _ = run("arguments", "-n", "2", module=True)
    assert code == 7
    assert out == "['-n', '2'] __main__ nothing 4\n"
    assert len(kvtrace.open("a.kvt")) == 2


def test_a_module_that_is_not_there_is_one_line(run, tmp_path):
    (tmp_path / "there.py").write_text("")
    for name, said in ("nowhere", "No module named nowhere"), ("there.py", "Try using 'there'"):
        code, _, err = run(name, module=True)
        assert (code, err.count("\n")) == (2, 1)
        assert said in err


def test_an_exception_is_shown_without_our_frames_and_the_trace_is_kept(run):
    code, _, err = run("raises.py")
    assert code == 1
    assert "assert t <= self.block_size" in err
    assert 'raises.py", line 9' in err
    assert "kvtrace/record" not in err
    trace = kvtrace.open("a.kvt")
    assert (len(trace), trace.ending.reason) == (22, "error")
    assert "compared with recomputed" in err
    assert float(trace.compared(21).relative.max()) < 1e-4


def test_a_script_that_asks_for_a_gpu_is_told_of_the_option(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("Torch not compiled with CUDA enabled")

    # as where there is none, also on a machine that has one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    (tmp_path / "wants.py").write_text("import torch\ntorch.zeros(1).cuda()\n")
    code, _, err = run("wants.py")
    assert code == 1
    assert "kvtrace: it asks for a GPU, and there is none: --cpu maps it to the CPU\n" in err
    (tmp_path / "wants.py").write_text("raise ValueError('seven')\n")
    assert "GPU" not in run("wants.py")[2]


def test_an_exception_has_the_frames_that_it_has_unwatched(run, tmp_path):
    (tmp_path / "fails.py").write_text(
        "import torch\ntorch.nn.functional.embedding(torch.tensor([5]), torch.zeros(2, 3))\n"
    )
    err = run("fails.py")[2]
    places = [line.split()[-1] for line in err.splitlines() if line.startswith("  File")]
    assert places == ["<module>", "embedding"]
    assert err.count("handle_torch_function") == 0


def test_a_script_finds_its_own_module_where_kvtrace_has_loaded_one_of_that_name(
    run, tmp_path, monkeypatch
):
    for name in ("kvt_reader", "kvt_data"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    (tmp_path / "kvt_reader.py").write_text("mine = 5\n")
    (tmp_path / "kvt_data").mkdir()
    (tmp_path / "reads.py").write_text(
        "import kvt_data, kvt_reader\nprint(kvt_reader.mine, kvt_data.__spec__)\n"
    )
    assert run("reads.py")[:2] == (0, "5 None\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("recurrent", "no attention was seen in CharRNN (4 calls with tokens)"),
        ("vision", "modules were called, but none with token ids: Sequential (1 call)"),
    ],
)
def test_where_nothing_attends_a_sentence_says_what_was_seen_and_no_file_is_left(
    run, tmp_path, name, said
):
    code, _, err = run(f"{name}.py")
    assert code == 0
    assert err == f"kvtrace: nothing was recorded: {said}" + err[len(said) + 31 :]
    assert not list(tmp_path.glob("*.kvt"))


def test_ctrl_c_keeps_the_trace(run, tmp_path):
    source = (tmp_path / "raises.py").read_text()
    stopping = (
        "            if step == 5: raise KeyboardInterrupt\n            logits, _ = model(ids)\n"
    )
    (tmp_path / "stopped.py").write_text(
        source.replace("            logits, _ = model(ids)\n", stopping)
    )
    code, _, err = run("stopped.py")
    assert code == 130
    assert err.splitlines()[-2] == "KeyboardInterrupt"
    trace = kvtrace.open("a.kvt")
    assert (len(trace), trace.ending.reason) == (5, "stopped")


def test_threads_that_were_there_before_are_not_waited_for(run, tmp_path):
    (tmp_path / "short.py").write_text("print('done')\n")
    over = threading.Event()
    threading.Thread(target=over.wait).start()
    try:
        assert run("short.py")[:2] == (0, "done\n")
    finally:
        over.set()


@pytest.mark.parametrize("wanted", [True, False])
def test_rows_of_large_passes_are_kept_where_they_are_asked_for(run, monkeypatch, wanted):
    monkeypatch.setattr("kvtrace.record.lanes.passes.at_end.KEPT_BYTES", 0)
    code, _, err = run("sample.py", keep_rows=wanted)
    assert code == 0, err
    trace = kvtrace.open("a.kvt")
    assert bool(trace.compared(1).passes) is wanted
    left_out = [note.text for note in trace.notes if note.text.endswith(ROWS_LEFT_OUT)]
    assert left_out == ([] if wanted else [f"recomputed {ROWS_LEFT_OUT}"])


def test_a_pool_of_threads_that_nobody_shuts_down_holds_nothing_up(run, tmp_path):
    (tmp_path / "pool.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import torch\n"
        "from model import GPT\n"
        "model, pool = GPT(), ThreadPoolExecutor(2)\n"
        "prompts = [torch.arange(n)[None] for n in (3, 4, 5)]\n"
        "print(len(list(pool.map(lambda ids: model.generate(ids, 3), prompts))))\n"
    )
    code, out, _ = run("pool.py")
    assert (code, out) == (0, "3\n")
    trace = kvtrace.open("a.kvt")
    assert agreed(trace) == len(trace) == 9


def test_a_script_knows_where_it_lies_wherever_it_goes(run, tmp_path):
    (tmp_path / "lies.py").write_text(
        "import os\nos.chdir('/')\nprint(os.path.exists(__file__), __import__('sys').argv[0])\n"
    )
    assert run("lies.py")[:2] == (0, "True lies.py\n")


def test_the_trace_is_named_from_where_the_script_was_started_wherever_it_ends(run, tmp_path):
    (tmp_path / "goes.py").write_text(
        "import os, tempfile\n"
        "import torch\n"
        "from model import GPT\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    os.chdir(folder)\n"
        "    GPT().generate(torch.ones(1, 3).long(), 2)\n"
    )
    code, _, err = run("goes.py")
    os.chdir(tmp_path)
    assert code == 0
    assert err.rstrip().endswith("in a.kvt; see it with: kvtrace open a.kvt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_was_run_in_another_way_is_not_said_to_be_missing(run, tmp_path):
    (tmp_path / "compiles.py").write_text(
        "import torch\nfrom model import GPT\ntorch.compile(GPT())(torch.ones(1, 3).long())\n"
    )
    _, _, err = run("compiles.py")
    assert f"\nkvtrace: {EAGERLY}\n" in err


def test_a_script_that_becomes_another_program_is_said_to_go_unrecorded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: sys.exit(5))
    (tmp_path / "anew.py").write_text(
        "import os, sys\nos.execv(sys.executable, [sys.executable])\n"
    )
    code, _, err = run("anew.py")
    assert code == 5
    assert err.startswith("kvtrace: the script goes on as another program (exec)")


def test_processes_that_a_script_starts_are_said_to_go_unrecorded(run, tmp_path):
    (tmp_path / "starts.py").write_text(
        "import subprocess, sys\n"
        "work = 'import time\\nwhile time.process_time() < 0.6: pass'\n"
        "subprocess.run([sys.executable, '-c', work])\n"
    )
    code, _, err = run("starts.py")
    assert code == 0
    assert "what the processes that it started do is not recorded" in err


def test_a_model_whose_other_method_does_not_attend_is_named(run, tmp_path):
    (tmp_path / "recurs.py").write_text(
        "import torch\n"
        "class Recurs(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.mix = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8)\n"
        "    def forward_recurrent(self, ids, state):\n"
        "        state = 0.9 * state + self.mix(self.table(ids))\n"
        "        return state\n"
        "model, state = Recurs(), torch.zeros(1, 8)\n"
        "for token in range(4):\n"
        "    state = model.forward_recurrent(torch.tensor([token]), state)\n"
    )
    code, _, err = run("recurs.py")
    assert code == 0
    assert "no attention was seen in Recurs (4 calls with tokens): recurrent, or not" in err
