"""The whole program in tmux, as a person uses it: keys in, what the terminal shows out."""

import os
import shlex
import subprocess
import sys
import time

import pytest

from builders import Shape, synthetic_trace
from builders.written import write_trace

PATIENCE_S = 60.0
MAIN = "import sys; from kvtrace.cli import main; sys.exit(main())"


class Tmux:
    """One session in a server of its own."""

    def __init__(self, folder, command, environ):
        self.base = ["tmux", "-S", str(folder / "tmux.sock"), "-f", os.devnull]
        cleared = ["env", "-u", "NO_COLOR", "-u", "COLORTERM"]
        pairs = [f"{name}={value}" for name, value in environ.items()]
        words = shlex.join([*cleared, *pairs, *map(str, command)])
        self.run(
            "new-session", "-d", "-x", "120", "-y", "36", f"{words}; echo left with $?; sleep 60"
        )

    def run(self, *arguments):
        done = subprocess.run([*self.base, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    def keys(self, *names):
        self.run("send-keys", *names)

    def shows(self, words):
        """Wait until it does; the screen as text."""
        until = time.monotonic() + PATIENCE_S
        while words not in (text := self.run("capture-pane", "-p")):
            assert time.monotonic() < until, f"{words!r} never came:\n{text}"
            time.sleep(0.05)
        return text

    def colours(self):
        """The screen with its escape sequences."""
        return self.run("capture-pane", "-p", "-e")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([*self.base, "kill-server"], capture_output=True, check=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    trace = synthetic_trace(Shape(layers=4, heads=4, prompt=6, decode=5))
    return write_trace(tmp_path_factory.mktemp("traces") / "a.kvt", trace)


@pytest.mark.parametrize(
    ("environ", "present", "absent"),
    [
        ({"COLORTERM": "truecolor", "TERM": "tmux-256color"}, ["38;2;"], []),
        ({"TERM": "tmux-256color"}, ["38;5;"], ["38;2;"]),
        ({"NO_COLOR": "1", "TERM": "tmux-256color"}, [], ["38;2;", "38;5;", "48;2;", "48;5;"]),
    ],
    ids=["truecolor", "256", "no-color"],
)
def test_a_trace_is_opened_stepped_through_compared_and_left(
    tmp_path, path, environ, present, absent
):
    with Tmux(tmp_path, [sys.executable, "-c", MAIN, "open", path], environ) as tmux:
        assert "■ recorded" in tmux.shows("step 1/5")
        tmux.shows("step 1 computed 1 row of Q, K, V instead of 7")
        tmux.keys("n", "]", "}")
        tmux.shows("step 2/5")
        tmux.shows("L1 H1")
        tmux.keys("d", "d")
        tmux.shows("|cached − recomputed|")
        colours = tmux.colours()
        assert [code for code in present if code not in colours] == []
        assert [code for code in absent if code in colours] == []
        tmux.keys("g", "4", "Enter")
        tmux.shows("step 4/5")
        tmux.keys("?")
        tmux.shows("Go to the next step")
        tmux.keys("q")
        tmux.shows("step 4/5")
        tmux.keys("q")
        assert "■ recorded" not in tmux.shows("left with 0")
