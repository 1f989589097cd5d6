import os
import pty
import signal
import sys

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.terminal import Terminal, kvtrace
from builders.written import write_trace
from kvtrace_tui.driver import SteadyOutput

_BROKEN = """
import sys
from kvtrace.cli import main
from kvtrace_tui.desk import moves
def broken(trace, number=None):
    text = "\\x1b]0;owned\\x07"
    raise ValueError(f"planted {text}")
moves.start = broken
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    trace = synthetic_trace(Shape(prompt=5, decode=4))
    return write_trace(tmp_path_factory.mktemp("traces") / "a.kvt", trace)


def test_q_leaves_with_0_and_the_terminal_as_it_was(path):
    with kvtrace("open", path) as terminal:
        terminal.wait_for("recorded")
        terminal.keys("q")
        assert terminal.ended() == 0
        assert terminal.restored


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGINT, 130),
        (signal.SIGQUIT, 131),
    ],
)
def test_a_signal_leaves_with_its_code_and_the_terminal_as_it_was(path, number, code):
    with kvtrace("open", path) as terminal:
        terminal.wait_for("recorded")
        terminal.process.send_signal(number)
        assert terminal.ended() == code
        assert terminal.restored


def test_the_screen_is_drawn_where_stderr_goes_elsewhere(path, tmp_path):
    errors = tmp_path / "errors.txt"
    with kvtrace("open", path, errors=errors) as terminal:
        terminal.wait_for("recorded")
        terminal.keys("q")
        assert terminal.ended() == 0
        assert terminal.restored
    assert errors.read_bytes() == b""


def test_a_terminal_that_is_gone_without_a_signal_ends_it(path):
    with kvtrace("open", path) as terminal:
        terminal.wait_for("recorded")
        os.close(terminal.fd)
        terminal.fd = os.open(os.devnull, os.O_RDWR)
        assert terminal.ended() == 129


def test_what_is_written_to_a_terminal_that_is_gone_goes_nowhere():
    master, slave = pty.openpty()
    os.close(master)
    with os.fdopen(slave, "w") as stream:
        output = SteadyOutput(stream)
        for _ in range(100):
            output.write("x" * 1000)
            output.flush()
        assert not output.isatty()


@pytest.mark.parametrize(
    "sent",
    [
        b"\xe9",
        b"\x1b[999999999999~",
        b"\x1b[1;1;99999999999u",
        b"\x1b[<9;9",
        b"\x1b[200~\xff\x1b[201~",
    ],
    ids=["latin-1", "no-character", "no-text", "half-a-click", "paste"],
)
def test_bytes_that_are_no_keys_are_passed_over(path, sent):
    with kvtrace("open", path) as terminal:
        terminal.wait_for("step 1/4")
        terminal.forget()
        os.write(terminal.fd, sent)
        terminal.settle()
        terminal.keys("N")
        terminal.wait_for("0/4")
        terminal.keys("q")
        assert terminal.ended() == 0
        assert b"Traceback" not in terminal.output
        assert terminal.restored


def test_ctrl_c_leaves_with_130(path):
    with kvtrace("open", path) as terminal:
        terminal.wait_for("recorded")
        terminal.keys("\x03")
        assert terminal.ended() == 130
        assert terminal.restored


@pytest.mark.parametrize(
    "environ",
    [
        {"NO_COLOR": "1"},
        {"COLORTERM": ""},
        {"TERM": "linux", "COLORTERM": ""},
        {"LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    ],
)
def test_every_class_of_terminal_shows_the_trace_and_takes_keys(path, environ):
    with kvtrace("open", path, environ=environ) as terminal:
        terminal.wait_for("recorded")
        terminal.forget()
        for key in "nNdddd5123467tm+-z":
            terminal.keys(key)
        terminal.keys("n")
        terminal.settle()
        terminal.keys("q")
        assert terminal.ended() == 0
        assert terminal.restored
        assert b"Traceback" not in terminal.output


def test_no_color_writes_no_colour_at_all(path):
    with kvtrace("open", path, environ={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for("recorded")
        terminal.keys("ndt?")
        terminal.settle()
        assert b"38;2;" not in terminal.output
        assert b"38;5;" not in terminal.output
        assert b"48;" not in terminal.output


def test_256_colours_get_no_truecolor(path):
    with kvtrace("open", path, environ={"COLORTERM": ""}) as terminal:
        terminal.wait_for("recorded")
        terminal.keys("nd")
        terminal.settle()
        assert b";5;" in terminal.output
        assert b"38;2;" not in terminal.output


def test_any_size_is_survived_and_too_small_says_so(path):
    with kvtrace("open", path) as terminal:
        terminal.wait_for("recorded")
        for size in [(30, 8), (1, 1), (500, 200), (40, 12), (99, 29), (2, 90), (200, 60)]:
            terminal.resize(*size)
            terminal.settle()
        terminal.forget()
        terminal.resize(60, 10)
        terminal.wait_for("kvtrace needs 40×12")
        terminal.keys("q")
        assert terminal.ended() == 0
        assert terminal.restored


def test_no_mouse_leaves_the_mouse_to_the_terminal(path):
    with kvtrace("open", path, "--no-mouse") as terminal:
        terminal.wait_for("recorded")
        assert b"\x1b[?1000h" not in terminal.output
        terminal.keys("q")
        assert terminal.ended() == 0


def test_foreign_text_never_reaches_the_terminal_raw(tmp_path):
    hostile = synthetic_trace(Shape(prompt=6, decode=4))
    words = [
        "\x1b]0;owned\x07", "\x1b[2J", "\x1b]52;c;b3duZWQ=\x07", "[/foo]", "[bold]x", "\x00",
        "\u202eabc", "\u200b", "e" + "\u0301" * 60, "\x7f\x08", "\x1b[?1049l", "\x9b31m",
    ]  # fmt: skip
    hostile.source.texts = dict(enumerate(words))
    for index, step in list(hostile.source.steps.items()):
        texts = hostile.source.texts if index == 0 else {}
        hostile.source.steps[index] = replace(step, texts=texts)
    path = write_trace(tmp_path / "hostile.kvt", hostile)
    with kvtrace("open", path, columns=160, lines=45) as terminal:
        terminal.wait_for("recorded")
        terminal.keys("nnNdDt/[\ryY1234567?\x1b")
        terminal.settle()
        for raw in (
            b"owned\x07",
            b"\x1b]52;c;b3du",
            b"\x9b31m",
            "\u202e".encode(),
            "\u200b".encode(),
        ):
            assert raw not in terminal.output
        assert b"[/foo]" in terminal.output
        terminal.keys("q")
        assert terminal.ended() == 0
        assert terminal.restored


def test_a_shell_that_had_the_terminal_meanwhile_gives_it_back_to_a_whole_screen(path):
    with kvtrace("open", path, columns=160, lines=45) as terminal:
        terminal.wait_for("lanes equal")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.wait_for(b"\x1b[?1049l")
        terminal.forget()
        terminal.process.send_signal(signal.SIGCONT)
        for words in ("recorded", "K cache", "V cache", "attention", "Next"):
            terminal.wait_for(words)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_of_ours_is_one_safe_line_and_debug_shows_where(path, debug):
    with Terminal([sys.executable, "-c", _BROKEN, "open", str(path), *debug]) as terminal:
        assert terminal.ended() == 3
        assert terminal.restored
        terminal.read()
        assert b"internal error, ValueError: planted" in terminal.output
        assert (b"Traceback" in terminal.output) == bool(debug)
        assert b"\x1b]0;owned" not in terminal.output


@pytest.mark.parametrize(
    ("key", "value"), [("TEXTUAL_DRIVER", "no.such:Driver"), ("TEXTUAL_COLOR_SYSTEM", "purple")]
)
def test_a_screen_that_the_environment_makes_impossible_names_the_variable(
    path, tmp_path, key, value
):
    errors = tmp_path / "errors.txt"
    with kvtrace("open", path, errors=errors, environ={key: value}) as terminal:
        assert terminal.ended() == 2
    assert errors.read_text().startswith(f"kvtrace: {key}={value}: no screen can be made so (")
