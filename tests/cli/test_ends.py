"""Whatever ends a recording: the trace opens, the exit code tells, nobody stays behind."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from builders.commands import (
    SLOW_MODEL,
    finish,
    is_gone,
    kill_after_steps,
    recorder_of,
    run,
    start,
    steps_in,
    wait_for,
)
from builders.raw_frames import split
from kvtrace.files import open_trace
from kvtrace.files.layout import Kind

WAITS_FOR_THE_TRACE_TO_GO = """
import pathlib, time, slow

class Waits(slow.Slow):
    def forward(self, *args, past_key_values=None, **named):
        if past_key_values is not None and past_key_values.get_seq_length() > 8:
            while pathlib.Path("a.kvt").exists():
                time.sleep(0.01)
        return super().forward(*args, past_key_values=past_key_values, **named)

def make():
    return Waits(slow.make().config)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    return tmp_path


def recording(folder, *, tokens=4000):
    return start("record", "slow.py:make", "hello", "-n", tokens, "-o", "a.kvt", cwd=folder)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_to_us_closes_the_trace_after_the_step(folder, number, code):
    process = recording(folder)
    recorder = recorder_of(process)
    kill_after_steps(process, folder / "a.kvt", 3, process.pid, number)
    returned, out, err = finish(process)
    assert (returned, out) == (code, "")
    trace = open_trace(folder / "a.kvt")
    assert trace.ending.reason == "stopped"
    assert err.splitlines()[-1] == (
        f"kvtrace: stopped ({number.name}); {len(trace)} steps are in a.kvt"
    )
    assert is_gone(recorder)


def test_the_recorder_killed_is_told_and_every_acknowledged_step_is_there(folder):
    process = recording(folder)
    kill_after_steps(process, folder / "a.kvt", 3, recorder_of(process), signal.SIGKILL)
    code, _, err = finish(process)
    kept = steps_in(folder / "a.kvt")
    assert code == 3
    assert "the recorder was killed (9), likely for memory" in err
    told = int(err.split(" steps are safe")[0].split()[-1])
    assert 3 <= told <= kept
    assert "kvtrace open a.kvt" in err
    assert run("show", "a.kvt", cwd=folder)[0] == 4


def test_the_recorder_terminated_ends_its_trace(folder):
    process = recording(folder)
    kill_after_steps(process, folder / "a.kvt", 3, recorder_of(process), signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 3
    assert "stopped by SIGTERM" in err
    assert open_trace(folder / "a.kvt").ending.text == "stopped by SIGTERM"


def test_when_we_are_killed_the_recorder_ends_its_trace_and_goes(folder):
    process = recording(folder)
    recorder = recorder_of(process)
    kill_after_steps(process, folder / "a.kvt", 3, process.pid, signal.SIGKILL)
    finish(process)
    wait_for(lambda: is_gone(recorder))
    assert "is gone" in open_trace(folder / "a.kvt").ending.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_us_while_loading_leaves_nothing_behind(folder, number):
    process = start("record", "slow.py:stuck", "hello", "-o", "a.kvt", cwd=folder)
    recorder = recorder_of(process)
    process.send_signal(number)
    code, out, _ = finish(process)
    assert (code, out) == (143 if number == signal.SIGTERM else -9, "")
    wait_for(lambda: is_gone(recorder))
    assert not (folder / "a.kvt").exists()


def test_a_full_disk_is_exit_74_and_the_steps_before_it_open(folder):
    limit = 200_000
    code, out, err = run(
        "record", "slow.py:make", "hello", "-n", 500, "-o", "a.kvt",
        cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (code, out) == (74, "")
    assert err.splitlines()[-1].startswith("kvtrace: a.kvt: File too large after ")
    assert "Traceback" not in err
    trace = open_trace(folder / "a.kvt")
    assert 0 < len(trace) < 500
    assert trace.ending is None
    assert not trace.damage
    assert (folder / "a.kvt").stat().st_size <= limit


def test_a_disk_that_fills_when_all_steps_are_written_is_exit_74_as_well(folder):
    arguments = ("record", "slow.py:make", "hello", "-n", 8, "-o")
    assert run(*arguments, "whole.kvt", cwd=folder)[0] == 0
    _, frames = split(folder / "whole.kvt")
    last = max(frame.offset for frame in frames if frame.kind == Kind.STEP)
    end = next(frame.offset for frame in frames if frame.kind == Kind.END)
    limit = (last + end) // 2
    code, out, err = run(
        *arguments, "a.kvt",
        cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (code, out) == (74, "")
    assert "kvtrace: a.kvt: File too large after " in err
    trace = open_trace(folder / "a.kvt")
    assert (len(trace), trace.ending, list(trace.damage)) == (8, None, [])


def test_a_trace_that_is_deleted_while_it_is_recorded_is_no_success(folder):
    (folder / "waits.py").write_text(WAITS_FOR_THE_TRACE_TO_GO)
    process = start("record", "waits.py:make", "hello", "-n", 8, "-o", "a.kvt", cwd=folder)
    wait_for(lambda: steps_in(folder / "a.kvt") >= 1)
    (folder / "a.kvt").unlink()
    code, out, err = finish(process)
    assert (code, out) == (74, "")
    (last,) = err.splitlines()[-1:]
    assert last.startswith("kvtrace: a.kvt: the file was removed or replaced while it was written")
    assert last.endswith("Leave it in place, and run again.")


def test_an_error_in_the_models_code_names_its_line_and_keeps_the_steps(folder):
    code, out, err = run("record", "slow.py:raises", "hi", "-n", 9, "-o", "a.kvt", cwd=folder)
    line = next(i for i, text in enumerate(SLOW_MODEL.splitlines(), 1) if "no more" in text)
    assert (code, out) == (3, "")
    assert f"slow.py:{line}: ValueError: no more" in err
    assert "\x1b" not in err
    assert "said" not in out + err
    trace = open_trace(folder / "a.kvt")
    assert len(trace) == 3
    assert trace.ending.reason == "error"


def test_what_the_models_code_prints_is_shown_when_asked(folder):
    options = ["-n", 1, "--recompute", "off", "--debug"]
    code, out, err = run("record", "slow.py:prints", "hi", *options, "-o", "b.kvt", cwd=folder)
    assert code == 0
    assert "said" not in out
    for text in ("said on stdout", "said on stderr", "said by a shell", "said␛[2J raw"):
        assert f"| {text}\n" in err


def test_two_recordings_to_one_file_do_not_mix(folder):
    process = recording(folder)
    wait_for(lambda: steps_in(folder / "a.kvt") >= 1)
    code, _, err = run("record", "slow.py:make", "x", "-o", "a.kvt", cwd=folder)
    assert code == 73
    assert "a.kvt" in err
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert open_trace(folder / "a.kvt").meta.prompt == "hello"


def test_a_pipe_that_closes_early_is_no_error(trace_file, folder):
    process = start("show", trace_file, cwd=folder)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), err) == (0, "")


def test_a_full_standard_output_is_exit_74(trace_file):
    command = [sys.executable, "-c", "import sys, kvtrace.cli; sys.exit(kvtrace.cli.main())"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "show", str(trace_file)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 74
    assert done.stderr == "kvtrace: the terminal or a pipe: No space left on device\n"


def test_an_error_that_nobody_can_hear_keeps_its_exit_code(folder):
    command = [sys.executable, "-c", "import sys, kvtrace.cli; sys.exit(kvtrace.cli.main())"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, "show", "absent.kvt"], stderr=full, cwd=folder)
    assert done.returncode == 65


def test_a_recorder_that_took_its_seconds_of_cpu_is_told_so_and_not_of_memory(folder):
    (folder / "busy.py").write_text("while True:\n    pass\n")
    code, _, err = run(
        "record", "busy.py:make", "hello", "-o", "a.kvt",
        cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (3, 3)),
    )  # fmt: skip
    assert code == 3
    (last,) = err.splitlines()[-1:]
    assert "killed (9), for it took the 3 s of CPU time that it is allowed (ulimit -t)" in last
