"""`kvtrace.check` and `kvtrace.diff` of runs that were recorded."""

import subprocess
import sys

import pytest
import torch

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL
from kvtrace.cli import main
from kvtrace.errors import TraceError, UsageError
from verify import bugs

PROMPT = [5, 9, 30, 7]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    kvtrace.check(bugs.gpt2(), PROMPT, new_tokens=3, ways=("again",), keep=folder)
    return folder


def test_a_trace_is_judged_by_its_path_or_as_it_was_opened(kept):
    path = kept / "decode.kvt"
    for given in (path, str(path), kvtrace.open(path)):
        report = kvtrace.check(given)
        assert (report.verdict, report.ok) == (EQUAL, True)


def test_a_trace_is_given_alone(kept):
    with pytest.raises(UsageError, match="found str with a prompt or run="):
        kvtrace.check(str(kept / "decode.kvt"), PROMPT)
    with pytest.raises(UsageError, match="found PosixPath with a prompt or run="):
        kvtrace.check(kept / "decode.kvt", run=print)


def test_what_is_no_trace_is_told_as_by_opening_it(tmp_path):
    with pytest.raises(TraceError, match=r"gone\.kvt"):
        kvtrace.check(tmp_path / "gone.kvt")


def test_two_runs_are_compared_and_print_what_the_verb_prints(kept, capsys):
    old, new = kept / "decode.kvt", kept / "again.kvt"
    found = kvtrace.diff(old, kvtrace.open(old))
    assert (found.verdict, found.ok, found.exit_code) == (EQUAL, True, 0)
    other = kvtrace.diff(old, new)
    code = main(["diff", str(old), str(new)])
    assert code == other.exit_code
    said = capsys.readouterr().out.strip().replace(f"{kept}/", "")
    assert str(other) == said
    assert repr(other) == f"<Diff: {said.splitlines()[0]}>"


def test_a_diff_that_parts_says_so_in_one_line_at_a_prompt(kept, tmp_path):
    other = bugs.gpt2()
    with torch.no_grad():
        other.transformer.h[1].attn.c_attn.weight[0] += 1
    kvtrace.check(other, PROMPT, new_tokens=3, ways=(), keep=tmp_path)
    parted = kvtrace.diff(kept / "decode.kvt", tmp_path / "decode.kvt")
    assert (parted.verdict, parted.ok) == (DIVERGED, False)
    assert repr(parted).startswith("<Diff: diverged at step 0, layer 1, head ")


def test_judging_and_comparing_traces_loads_no_torch(kept):
    path = str(kept / "decode.kvt")
    code = (
        f"import sys, kvtrace; kvtrace.check({path!r}); kvtrace.diff({path!r}, {path!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
