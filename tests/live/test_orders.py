import os
import subprocess
import sys
import threading

import pytest

from kvtrace.live.messages import Command, Lines, Said, encode
from kvtrace.live.orders import Orders, Stopped
from kvtrace.live.voice import Voice


def orders(*, paused: bool = False) -> Orders:
    made = Orders(Lines(), paused=paused)
    made.begin()
    return made


def turn_in_thread(one: Orders) -> tuple[threading.Thread, list[str]]:
    told: list[str] = []

    def wait():
        told.append(str(one.await_turn(lambda: told.append("waiting"))))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, told


def test_without_orders_it_runs():
    one = orders()
    assert one.await_turn(lambda: pytest.fail("waited")) is True


def test_a_pause_waits_for_run():
    one = orders()
    one.obey(Command("pause"))
    thread, told = turn_in_thread(one)
    thread.join(0.1)
    assert told == ["waiting"]
    one.obey(Command("run"))
    thread.join(10)
    assert told == ["waiting", "True"]
    assert one.await_turn(lambda: pytest.fail("waited")) is True


def test_each_step_command_is_good_for_one_step():
    one = orders(paused=True)
    one.obey(Command("step"))
    one.obey(Command("step"))
    assert one.await_turn(lambda: pytest.fail("waited"))
    assert one.await_turn(lambda: pytest.fail("waited"))
    thread, told = turn_in_thread(one)
    thread.join(0.1)
    assert told == ["waiting"]
    one.obey(Command("stop"))
    thread.join(10)
    assert told == ["waiting", "False"]


def test_a_step_while_running_pauses_after_one():
    one = orders()
    one.obey(Command("step"))
    assert one.await_turn(lambda: pytest.fail("waited"))
    thread, told = turn_in_thread(one)
    thread.join(0.1)
    assert told == ["waiting"]
    one.obey(Command("run"))
    thread.join(10)


def test_a_stop_is_final():
    one = orders()
    one.obey(Command("stop"))
    one.obey(Command("run"))
    assert one.await_turn(lambda: None) is False
    assert one.stop_reason == "stopped by the user"


def test_a_chosen_token_is_taken_once():
    one = orders()
    one.obey(Command("choose", 17))
    assert (one.take_token(), one.take_token()) == (17, None)


def test_choosing_a_token_in_a_pause_goes_one_step_on_with_it():
    one = orders(paused=True)
    one.obey(Command("choose", 17))
    assert one.await_turn(lambda: pytest.fail("waited"))
    assert one.take_token() == 17
    one.obey(Command("stop"))
    assert not one.await_turn(lambda: None)


def test_what_is_no_command_is_ignored():
    one = orders()
    for line in (b"", b"garbage", encode(Said("x")), encode(Command("dance"))):
        one.hear(line)
    assert one.await_turn(lambda: pytest.fail("waited")) is True


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    prelude = (
        "import os, signal, sys, time\n"
        "from kvtrace.live import orders as module\n"
        "from kvtrace.live.messages import Command, Lines\n"
        "one = module.Orders(Lines()); module.GRACE = 0.2\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + script], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "stop",
    [
        "one.obey(Command('stop'))",
        "r, w = os.pipe(); one.listen(r); os.close(w)",
        "one.obey_sigterm(); os.kill(os.getpid(), signal.SIGTERM)",
    ],
    ids=["asked", "parent gone", "SIGTERM"],
)
def test_while_loading_a_stop_ends_the_process_at_once(stop):
    done = in_a_process(f"{stop}\ntime.sleep(30)")
    assert done.returncode == 143


@pytest.mark.parametrize(
    "stop",
    [
        "r, w = os.pipe(); one.listen(r); os.close(w)",
        "one.obey_sigterm(); os.kill(os.getpid(), signal.SIGTERM)",
    ],
    ids=["parent gone", "SIGTERM"],
)
def test_while_recording_it_may_come_to_the_end_of_its_step(stop):
    script = f"one.begin()\n{stop}\nwhile one.await_turn(lambda: None): time.sleep(0.01)\n"
    done = in_a_process(script + "print(one.stop_reason); sys.exit(5)")
    assert done.returncode == 5
    assert "gone" in done.stdout or "SIGTERM" in done.stdout


def test_who_never_comes_to_the_end_of_a_step_is_ended():
    done = in_a_process("one.begin(); one.obey_sigterm(); os.kill(os.getpid(), 15); time.sleep(30)")
    assert done.returncode == 143


def test_a_terminal_interrupt_is_not_the_recorders_business():
    done = in_a_process("one.obey_sigterm(); os.kill(os.getpid(), signal.SIGINT); print('alive')")
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_a_stop_that_came_while_loading_is_told_when_recording_begins(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: None)
    one = Orders(Lines())
    one.obey(Command("stop"))
    with pytest.raises(Stopped, match="by the user"):
        one.begin()


def test_a_fork_of_the_recorder_has_no_voice():
    done = in_a_process(
        "from kvtrace.live.messages import Said\nfrom kvtrace.live.voice import Voice\n"
        "voice = Voice(1)\nif os.fork() == 0:\n    voice.say(Said('fork')); os._exit(0)\n"
        "os.wait(); voice.say(Said('recorder'))"
    )
    assert done.stdout.encode() == encode(Said("recorder"))


def test_a_voice_nobody_hears_is_no_error():
    read, write = os.pipe()
    os.close(read)
    Voice(write).say(Said("hello"))
    os.close(write)


def test_a_parent_that_goes_is_a_stop():
    # in a process of its own: after a grace, it ends the process
    done = in_a_process(
        "one.begin(); read, write = os.pipe(); one.listen(read); os.close(write)\n"
        "one.obey(Command('pause'))\n"
        "print(one.await_turn(lambda: None), one.stop_reason)"
    )
    assert done.stdout.strip() == "False the program that started the recorder is gone"
