import os
import resource
import subprocess
import sys

import pytest

from kvtrace.cli.entry import load
from kvtrace.cli.shared.grammar import VERBS
from kvtrace.cli.shared.parser import narrowed

WRONG = {
    ("--frobnicate",): "unrecognized arguments: --frobnicate",
    ("gpt2",): 'no prompt for gpt2: kvtrace gpt2 "some text"',
    ("check", "gpt2"): 'no prompt for gpt2: kvtrace check gpt2 "some text"',
    ("record", "gpt2"): 'no prompt for gpt2: kvtrace record gpt2 "some text"',
    ("check",): "no model: try `kvtrace check demo`",
    ("",): "no model",
    ("record",): "no model",
    ("demo", "one", "two"): "'two' is one word too many",
    ("demo", "one", "--prompt-file", "x"): "'one' is one word too many",
    ("demo", "x", "-n", "-1"): "'-1' is not a whole number",
    ("demo", "x", "-n", "9" * 40): "is not a whole number",
    ("demo", "x", "-n", "٣"): "is not a whole number",
    ("demo", "x", "--temperature", "nan"): "'nan' is not a number, 0 or more",
    ("demo", "x", "--temperature", "-1"): "'-1' is not a number, 0 or more",
    ("demo", "x", "--top-k", "5"): "--top-k samples only together with --temperature",
    ("demo", "x", "--recompute", "twice"): "invalid choice: 'twice'",
    ("demo", "x", "--dtype", "int3"): "invalid choice: 'int3'",
    ("demo", "--prompt-file", "/nowhere/at/all"): "No such file",
    ("--no-mouse", "open", "a.kvt"): "`open` is a verb and comes first",
    ("open",): "the following arguments are required: FILE",
    ("open", "a.kvt", "--at", "x"): "'x' is no place in a trace",
    ("open", "a.kvt", "--at", "1/2/3/4"): "is no place in a trace",
    ("show", "a.kvt", "--steps", "x"): "'x' is no range of steps",
    ("show", "a.kvt", "--tensor", "weight"): "invalid choice: 'weight'",
    ("show", ""): "argument FILE: the name is empty",
    ("open", ""): "argument FILE: the name is empty",
    ("diff", "", "a.kvt"): "argument OLD: the name is empty",
    ("merge", "", "-o", "a.kvt"): "argument FILE: the name is empty",
    ("record", "demo", "x", "-o", ""): "argument -o/--output: the name is empty",
    ("check", ""): "no model",
    ("run", ""): "the name of the script is empty",
    ("info",): "required: FILE",
    ("recover",): "required: FILE",
}


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: " ".join(arguments)[:40])
def test_wrong_usage_is_one_line_and_exit_2(kvtrace, arguments):
    code, out, err = kvtrace(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("kvtrace: ")
    assert WRONG[arguments] in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [("recrod", "; did you mean `kvtrace record`?"), ("gpt", ""), ("check", ""), ("./chek", "")],
)
def test_a_word_that_is_nearly_a_verb_is_asked_about(kvtrace, word, said):
    code, _, err = kvtrace(word, "--no-such-option")
    assert code == 2
    assert err.endswith(f"--help`{said}\n")


def test_debug_adds_the_traceback(kvtrace):
    code, _, err = kvtrace("gpt2", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("kvtrace: no prompt for gpt2")


def test_foreign_text_in_an_error_is_made_safe(kvtrace):
    code, _, err = kvtrace("demo", "a", "\x1b[2Jb\nc\u202e")
    assert code == 2
    assert "\x1b" not in err
    assert err.count("\n") == 1
    assert "⟨202E⟩" in err or "\\u202e" in err


def test_a_prompt_that_is_not_utf8_names_the_byte(kvtrace):
    code, _, err = kvtrace("demo", os.fsdecode("né".encode() + b"\xff!"))
    assert code == 2
    assert "byte 3 (0xff)" in err
    assert "--prompt-file" in err


def test_a_prompt_file_that_is_not_utf8_names_the_byte(kvtrace, tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("né".encode() + b"\xc3(")
    code, _, err = kvtrace("demo", "--prompt-file", path)
    assert code == 2
    assert "byte 3 (0xc3)" in err


@pytest.mark.parametrize("name", ["", *VERBS])
def test_every_verb_explains_itself_with_examples(kvtrace, name):
    code, out, err = kvtrace(*([name] if name else []), "--help")
    assert code == 0
    assert err == ""
    assert "examples:" in out
    for command, _ in load(name).examples:
        assert command in out


def test_the_examples_in_help_are_commands_that_parse():
    for name in ["", *VERBS]:
        for command, _ in load(name).examples:
            words = command.partition("|")[0] if command.startswith("kvtrace") else command
            after = words.rpartition("kvtrace")[2].split()
            if name:
                assert after.pop(0) in VERBS
            elif after and after[0] in VERBS:
                continue
            load(name).parsed(after)


@pytest.mark.parametrize(("verb", "tokens"), [("record", 32), ("check", 16)])
def test_help_says_how_many_tokens_are_made_unasked(kvtrace, verb, tokens):
    _, out, _ = kvtrace(verb, "--help")
    assert f"new tokens (default {tokens})" in out


def test_options_may_stand_anywhere():
    parse = load("").parsed
    for arguments in (
        ["-n", "8", "gpt2", "hello"],
        ["gpt2", "-n", "8", "hello"],
        ["gpt2", "hello", "-n", "8"],
    ):
        values = parse(arguments)
        assert (values.words, values.new_tokens) == (["gpt2", "hello"], 8)


def test_a_model_called_like_a_verb_comes_after_dashes():
    values = load("").parsed(["--", "record", "hello"])
    assert values.words == ["record", "hello"]


def test_the_version_is_printed(kvtrace):
    code, out, _ = kvtrace("--version")
    assert code == 0
    assert out.startswith("kvtrace ")


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["gpt2"], ["-n", "x"]])
def test_help_and_usage_errors_load_nothing_heavy(arguments):
    code = (
        "import sys; from kvtrace.cli import main\n"
        f"main({arguments!r})\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "torch", "transformers", "textual", "rich"}


def test_python_m_is_the_same_command(kvtrace):
    ran = subprocess.run(
        [sys.executable, "-m", "kvtrace", "--version"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == kvtrace("--version")[:2]
    helped = subprocess.run([sys.executable, "-m", "kvtrace", "-h"], capture_output=True, text=True)
    assert "__main__" not in helped.stdout


def test_a_prompt_from_an_input_that_the_shell_closed_is_a_usage_error(kvtrace, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = kvtrace("demo", "--prompt-file", "-")
    assert code == 2
    assert "standard input is closed" in err


def test_a_lone_file_is_read_as_the_parser_reads_it(tmp_path):
    verb = load("open")
    for word in ("a.kvt", "a b", str(tmp_path)):
        parsed = verb.parser().parse_intermixed_args([word])
        parsed.after = []
        assert vars(verb.parsed([word])) == vars(parsed)


@pytest.mark.parametrize("verb", [(), *((name,) for name in VERBS)])
@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_help_fits_the_terminal_and_says_the_same_in_any(kvtrace, monkeypatch, verb, columns):
    monkeypatch.setenv("COLUMNS", "400")
    _, wide, _ = kvtrace(*verb, "--help")
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = kvtrace(*verb, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= int(columns)
    assert out.split() == wide.split()


def test_a_long_text_of_a_table_goes_on_under_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    told = "  file.py   a function that\n            gives a model\n  ./folder  a directory"
    assert narrowed(told).split("\n") == told.split("\n")
    told = told.replace("function that", "function or a class that")
    assert narrowed(told).split("\n") == [
        "  file.py   a function or a",
        "            class that gives a",
        "            model",
        "  ./folder  a directory",
    ]


def test_a_library_that_memory_does_not_suffice_for_is_told_as_that():
    ran = subprocess.run(
        [sys.executable, "-m", "kvtrace", "show", "no.kvt"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (55_000 << 10,) * 2),
    )
    assert ran.returncode == 3
    assert ran.stderr == (
        "kvtrace: there is not enough memory for this; free some, or record less\n"
    )
