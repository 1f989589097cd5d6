"""The pytest plugin in a pytest of its own, as a stranger's project has it."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PROJECT = """
import sys
sys.path.insert(0, {bugs!r})
import bugs

def test_a_healthy_cache(assert_cache_consistent):
    assert_cache_consistent(bugs.gpt2(), [5, 9, 30, 7], new_tokens=3, ways=["chunks"])

def test_a_broken_cache(assert_cache_consistent):
    assert_cache_consistent(bugs.off_by_one(), [5, 9, 30, 7], new_tokens=3, ways=())

def test_no_cache(assert_cache_consistent):
    assert_cache_consistent(bugs.recurrent(), [5, 9, 30, 7], new_tokens=3)

def test_no_prompt(assert_cache_consistent):
    assert_cache_consistent(bugs.gpt2())

def test_an_unknown_token(assert_cache_consistent):
    assert_cache_consistent(bugs.gpt2(), [5, 99999], new_tokens=3)
"""


def run_pytest(folder, *arguments):
    """pytest in a process of its own, with our plugin."""
    known = {one.name for one in entry_points(group="pytest11")}
    plugin = [] if "kvtrace" in known else ["-p", "kvtrace.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_cache.py").write_text(PROJECT.format(bugs=str(TESTS / "verify")))
    done = run_pytest(folder, f"--basetemp={folder / 'tmp'}")
    assert "1 passed" in done.stdout or "4 failed" in done.stdout, done.stdout + done.stderr
    return folder, done.stdout


def test_a_healthy_cache_passes_and_leaves_no_trace(project):
    folder, out = project
    assert "4 failed, 1 passed" in out
    assert not list((folder / "tmp").glob("test_a_healthy_cache0/**/*.kvt"))


def test_a_failure_reads_like_the_report_and_shows_no_frame_of_ours(project):
    _, out = project
    assert "E       AssertionError: diverged: queries are rotated to another position" in out
    assert "rotated by -1 positions: off by one" in out
    assert "assert_cache_consistent(bugs.off_by_one()" in out
    assert "api.py" not in out
    assert "pytest_plugin.py" not in out


def test_the_trace_of_a_failing_test_is_kept_and_named(project):
    folder, out = project
    (kept,) = (folder / "tmp").glob("test_a_broken_cache0/**/*.kvt")
    assert f"kvtrace open {kept} --at 1/0/0/q" in out


def test_what_could_not_be_checked_does_not_pass(project):
    _, out = project
    assert "RecordError: could not check: no attention was seen in MambaForCausalLM" in out


def test_a_mistake_of_the_caller_is_one_line_and_shows_no_frame_of_ours(project):
    _, out = project
    assert "E       kvtrace.errors.UsageError: check: give prompts, or run=" in out
    assert "the prompt's id 99999 is outside the model's vocabulary of" in out
    assert "def check(" not in out


def test_loading_the_plugin_loads_nothing_heavy(tmp_path):
    (tmp_path / "test_light.py").write_text(
        "import sys\n"
        "def test_light():\n"
        "    assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_entry_point_is_declared():
    text = (TESTS.parent / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nkvtrace = "kvtrace.pytest_plugin"' in text
