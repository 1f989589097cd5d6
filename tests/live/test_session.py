"""The parent's end, against small programs that stand where the recorder stands."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from kvtrace.live import session as module
from kvtrace.live.messages import Ended, Failed, Progress, Request, Said, Started, Stepped
from kvtrace.live.session import Session

PRELUDE = """
import json, os, signal, subprocess, sys, time
commands, events = open(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", buffering=1)
request = json.loads(commands.readline())
def tell(kind, **fields):
    print(json.dumps({"kind": kind, **fields}), file=events)
def step(number):
    tell("stepped", number=number, path=request["output"])
"""
REQUEST = Request("demo", "a.kvt", "hello")


def started(script: str, request: Request = REQUEST) -> Session:
    return Session(request, command=[sys.executable, "-c", PRELUDE + script])


def heard(session: Session, seconds: float = 120.0) -> list:
    events = []
    until = time.monotonic() + seconds
    while not session.finished and time.monotonic() < until:
        session.wait(0.05)
        events += session.poll()
    session.close(patience=0)
    assert session.finished
    return events


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_events_arrive_in_order_and_the_last_is_the_ending():
    session = started(
        'tell("started", protocol=1); tell("progress", text="reading", share=0.5)\n'
        'step(0); step(1); tell("ended", reason="length", text="", path="a.kvt")'
    )
    ended = Ended("length", "", "a.kvt")
    assert heard(session) == [
        Started(1),
        Progress("reading", 0.5),
        Stepped(0, "a.kvt"),
        Stepped(1, "a.kvt"),
        ended,
    ]
    assert (session.ending, session.failure, session.num_steps) == (ended, None, 2)
    assert not exists(session.pid)


def test_the_request_arrives_whole_also_when_it_is_larger_than_a_pipe():
    prompt = "\udcff\x00é" * 200_000
    script = 'tell("ended", reason=str(len(request["prompt"])), text="", path="")'
    assert heard(started(script, Request("demo", "a.kvt", prompt)))[-1].reason == "600000"


def test_commands_arrive():
    session = started(
        "got = [json.loads(commands.readline()) for _ in range(2)]\n"
        'tell("said", text=repr([(one["name"], one["token"]) for one in got]))\n'
        'tell("ended", reason="done", text="", path="")'
    )
    session.send("pause")
    session.send("choose", 17)
    assert Said("[('pause', -1), ('choose', 17)]") in heard(session)


def test_what_the_child_prints_arrives_as_lines_and_not_on_our_output(capfd):
    session = started(
        'print("to stdout"); print("to stderr", file=sys.stderr)\n'
        'print("half", end="\\r"); os.write(1, b"\\xff\\n"); os.system("echo from a shell")\n'
        'tell("ended", reason="done", text="", path="")\n'
        'print("no newline", end="")'
    )
    said = [event.text for event in heard(session) if isinstance(event, Said)]
    assert sorted(said) == sorted(
        ["to stdout", "to stderr", "half", "\\xff", "from a shell", "no newline"]
    )
    assert capfd.readouterr() == ("", "")


def test_garbage_on_the_pipe_is_reported_and_skipped():
    session = started(
        'events.write("no json\\n{}\\n[1]\\n"); events.flush()\n'
        'os.write(events.fileno(), b"\\xfe\\n")\n'
        'tell("stranger", a=1); step(0); tell("ended", reason="done", text="", path="")'
    )
    events = heard(session)
    assert [event.source for event in events[:5]] == ["garbage"] * 5
    assert events[5:] == [Stepped(0, "a.kvt"), Ended("done", "", "")]


def test_its_input_is_closed_and_it_has_no_terminal():
    session = started(
        'tell("said", text=repr(sys.stdin.read()))\n'
        "try:\n    open('/dev/tty')\nexcept OSError:\n    tell('said', text='no terminal')\n"
        'tell("ended", reason="done", text="", path="")'
    )
    assert heard(session)[:2] == [Said("''"), Said("no terminal")]


def test_a_kill_is_told_with_what_is_safe():
    session = started("step(0); step(1); os.kill(os.getpid(), signal.SIGKILL)")
    assert heard(session)[-1] == Failed(
        3,
        "the recorder was killed (9), likely for memory. 2 steps are safe: kvtrace open a.kvt.",
    )


def test_a_crash_names_the_signal_and_what_was_being_done():
    session = started(
        'tell("progress", text="building the model")\n'
        "signal.signal(signal.SIGABRT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGABRT)"
    )
    assert heard(session)[-1] == Failed(
        3, "the recorder was ended by SIGABRT (6) while building the model."
    )


def test_a_crash_of_the_interpreter_names_the_line_of_the_users_file():
    session = started(
        'tell("progress", text="running mine.py")\n'
        "import faulthandler; faulthandler.enable()\n"
        "code = 'def seg():\\n import ctypes; ctypes.string_at(0)\\nseg()'\n"
        "exec(compile(code, '/home/me/mine.py', 'exec'))"
    )
    assert heard(session)[-1] == Failed(
        3,
        "the recorder was ended by SIGSEGV (11) while running mine.py. It ran mine.py:2, in seg.",
    )


@pytest.mark.parametrize("status", [0, 1, 7])
def test_an_exit_without_a_last_word_is_a_failure_whatever_its_status(status):
    session = started(f"print('I give up', file=sys.stderr); os._exit({status})")
    failed = heard(session)[-1]
    assert failed.code == 3
    assert failed.text == (
        f"the recorder exited with status {status} while starting. Its last line: I give up"
    )


def test_silence_without_work_is_given_up():
    session = started('tell("progress", text="asking the hub", patience=0.3); time.sleep(60)')
    assert heard(session)[-1] == Failed(3, "asking the hub: no progress for 0 s, given up.")
    assert not exists(session.pid)


def test_silence_while_working_is_not_given_up():
    session = started(
        'tell("progress", text="building", patience=0.5)\n'
        "until = time.process_time() + 1.5\n"
        "while time.process_time() < until: pass\n"
        'tell("ended", reason="done", text="", path="")'
    )
    assert heard(session)[-1] == Ended("done", "", "")


def test_close_asks_first():
    session = started(
        'step(0)\nassert "stop" in commands.readline()\n'
        'tell("ended", reason="stopped", text="", path="a.kvt")'
    )
    session.close()
    assert session.ending == Ended("stopped", "", "a.kvt")
    assert not exists(session.pid)


def test_close_kills_what_does_not_listen():
    session = started("step(0)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    while not session.num_steps:
        session.wait(0.05)
        session.poll()
    session.close(patience=0.2)
    assert session.finished
    assert not exists(session.pid)
    assert session.failure is None
    text = "killed, for the step under way took too long to wait for"
    assert session.ending == Ended("stopped", text, "a.kvt")
    session.close()


def test_a_stop_while_loading_is_an_ending_not_a_failure():
    session = started("commands.readline(); os._exit(143)")
    session.close()
    assert session.failure is None
    assert session.ending == Ended("stopped", "before anything was recorded", "")


def test_what_the_child_started_ends_with_it():
    session = started(
        'other = subprocess.Popen(["sleep", "60"]); tell("said", text=str(other.pid))\n'
        'tell("ended", reason="done", text="", path="")'
    )
    other = int(next(event.text for event in heard(session) if isinstance(event, Said)))
    until = time.monotonic() + 120
    while exists(other) and not _is_zombie(other) and time.monotonic() < until:
        time.sleep(0.02)
    assert not exists(other) or _is_zombie(other)


def test_one_that_said_goodbye_and_stays_is_ended(monkeypatch):
    monkeypatch.setattr(module, "END_PATIENCE", 0.2)
    session = started('tell("ended", reason="done", text="", path="")\ntime.sleep(60)')
    assert heard(session)[-1] == Ended("done", "", "")
    assert session.failure is None


def test_another_protocol_is_refused():
    session = started('tell("started", protocol=999); time.sleep(60)')
    heard(session)
    assert "different versions" in session.failure.text


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_our_own_signals_do_not_reach_it():
    session = started(
        'tell("said", text=str(os.getsid(0) == os.getpid()))\n'
        'tell("ended", reason="done", text="", path="")'
    )
    assert Said("True") in heard(session)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
