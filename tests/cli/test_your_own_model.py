"""The README's section "Your own model", pasted and run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvtrace

KVTRACE = str(Path(sys.executable).with_name("kvtrace"))
README = Path(__file__).parents[2] / "README.md"

STRANGE = """
class Strange(Tiny):
    def forward(self, idx):
        raise NotImplementedError("only feed can be called")
    def new_memory(self, room):
        return {"past": None}
    def feed(self, ids, memory):
        logits, memory["past"] = Tiny.forward(self, ids, memory["past"])
        return logits
"""


def blocks():
    """Code of the section, in order: the model, the command, the adapter."""
    section = README.read_text().split("## Your own model")[1].split("\n## ")[0]
    return re.findall(r"```(?:python|sh)\n(.*?)```", section, re.S)


def recorded(folder, *words):
    """Run `kvtrace record` in a folder; what it said, and the trace."""
    command = [KVTRACE, "record", *words, "-n", "4", "-o", "a.kvt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr, kvtrace.open(folder / "a.kvt")


def test_the_example_runs_as_it_is_pasted_and_says_what_the_readme_says(tmp_path):
    model, command, _ = blocks()
    (tmp_path / "tiny.py").write_text(model)
    assert len([line for line in model.splitlines() if line.strip()]) <= 12
    said, trace = recorded(tmp_path, *command.replace('"', "").split()[1:])
    told = re.search(r"\*(called as .*?)\*", README.read_text(), re.S).group(1)
    assert " ".join(told.split()) in said
    assert trace.meta.sampling.driver == "kvtrace, by model(idx [1, new], past=cache)"
    assert [len(trace.step(number).tokens[0]) for number in trace.numbers] == [5, 1, 1, 1]
    assert [site.num_heads for site in trace.meta.sites] == [4]
    assert trace.meta.lane("recomputed") is not None


def test_the_adapter_runs_as_it_is_pasted(tmp_path):
    model, _, adapter = blocks()
    (tmp_path / "tiny.py").write_text(f"{model}\n{STRANGE}\n{adapter}")
    assert len(adapter.strip().splitlines()) < 10
    said, trace = recorded(tmp_path, "tiny.py:Strange", "hello")
    assert "driven by your step(model, ids, cache, pos)" in said
    assert len(trace.numbers) == 4


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import torch\ndef build(:\n", "own.py:2: SyntaxError"),
        ("def build():\n    import sys; sys.exit(3)\n", r"own.py:2: .*it called exit\(3\)"),
        ("def build():\n    return input()\n", "own.py:2: EOFError"),
    ],
)
def test_what_their_code_does_instead_is_one_line_with_their_line(tmp_path, code, told):
    (tmp_path / "own.py").write_text(code)
    command = [KVTRACE, "record", "own.py:build", "hello", "-o", "a.kvt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert re.search(told, done.stderr)
    assert "Traceback" not in done.stderr
