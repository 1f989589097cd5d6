"""`kvtrace run` from the outside: streams, exit codes, and complaints in one line."""

import subprocess
import sys

import kvtrace
from builders.commands import environment, run
from builders.own_scripts import write


def test_standard_input_and_output_are_the_scripts(tmp_path):
    write(tmp_path)
    command = [sys.executable, "-c", "import sys, kvtrace.cli; sys.exit(kvtrace.cli.main())"]
    done = subprocess.run(
        [*command, "run", "stdin.py"],
        cwd=tmp_path,
        env=environment(),
        input="abc\nde\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "abc 5\nde 4\n")
    assert "GPT: 4 steps from 2 prompts" in done.stderr
    assert len(kvtrace.open(tmp_path / "stdin.kvt")) == 4


def test_what_is_opened_afterwards_is_what_was_recorded(tmp_path):
    write(tmp_path)
    code, out, _ = run("run", "--open", "-o", "b.kvt", "notebook.py", cwd=tmp_path)
    assert code == 0
    assert "GPT" in out


def test_a_script_that_is_not_there_is_one_line(tmp_path):
    code, _, err = run("run", "nowhere/sample.py", cwd=tmp_path)
    assert code == 2
    assert err == (
        "kvtrace: nowhere/sample.py: there is no such script; for a module: "
        "kvtrace run -m nowhere.sample\n"
    )


def test_what_is_no_script_is_one_line(tmp_path, trace_file):
    (tmp_path / "lesson.ipynb").write_text("{}")
    code, _, err = run("run", "lesson.ipynb", cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("kvtrace: lesson.ipynb: a notebook; make a script of it")
    code, _, err = run("run", str(trace_file), cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"a trace, where a script is expected; kvtrace open {trace_file}" in err


def test_a_file_that_exists_is_not_replaced(tmp_path):
    write(tmp_path)
    (tmp_path / "a.kvt").write_text("mine")
    code, _, err = run("run", "-o", "a.kvt", "sample.py", cwd=tmp_path)
    assert code == 73
    assert "--force replaces it" in err
    assert (tmp_path / "a.kvt").read_text() == "mine"


def test_no_script_is_a_mistake_with_an_example(tmp_path):
    code, _, err = run("run", "--force", cwd=tmp_path)
    assert (code, err) == (
        2,
        "kvtrace: no script: kvtrace run script.py, or kvtrace run -m package.module\n",
    )


def test_a_fork_of_the_script_that_exits_says_nothing_of_ours(tmp_path):
    write(tmp_path)
    (tmp_path / "forks.py").write_text(
        "import os, runpy, sys\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.exit(5)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5\n"
        "runpy.run_path('sample.py', run_name='__main__')\n"
    )
    code, _, err = run("run", "forks.py", cwd=tmp_path)
    assert code == 0, err
    assert err.count("kvtrace:") == 1
