"""`kvtrace run`: somebody's own script, untouched, with whatever attends in it recorded."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvtrace.cli.shared import outputs
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.is_trace import is_trace
from kvtrace.cli.shared.options import RECOMPUTE
from kvtrace.cli.shared.parser import named
from kvtrace.errors import UsageError
from kvtrace.paths import NOTEBOOK


def run(values: argparse.Namespace) -> int:
    """Run it; its exit code."""
    words: list[str] = values.after
    if not words:
        raise UsageError("no script: kvtrace run script.py, or kvtrace run -m package.module")
    if not values.module:
        _check(words[0])
    output = (
        outputs.beside(words[0])
        if values.output is None
        else outputs.chosen(values.output, force=values.force)
    )
    wishes = {
        "output": str(output.resolve()),
        "recompute": values.recompute,
        "keep_rows": values.keep_rows,
        "cpu": values.cpu,
        "force": values.force,
        "module": values.module,
    }
    command = [
        sys.executable,
        *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
        "-P",
        "-m",
        "kvtrace.live.script",
        json.dumps(wishes),
        *words,
    ]
    sys.stdout.flush()
    if not values.open:
        os.execv(command[0], command)
    code = _wait(command)
    if not output.exists():
        return code
    from kvtrace.cli.open import show_trace

    return show_trace(output) or code


def _check(script: str) -> None:
    """That there is such a file.

    Raises:
        UsageError: There is none.
    """
    if not script:
        raise UsageError("the name of the script is empty; is a variable of the shell unset?")
    path = Path(script)
    if path.is_dir():
        raise UsageError(f"{script}: is a directory; name the script in it, or -m a module")
    if not path.is_file():
        module = script.replace("/", ".").removesuffix(".py")
        raise UsageError(
            f"{script}: there is no such script; for a module: kvtrace run -m {module}"
        )
    if path.suffix == ".ipynb":
        raise UsageError(f"{script}: {NOTEBOOK.format(script)}")
    if is_trace(path):
        raise UsageError(f"{script}: a trace, where a script is expected; kvtrace open {script}")


def _wait(command: Sequence[str]) -> int:
    """Run a process to its end; ctrl-c is its business."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = subprocess.run(command, check=False, preexec_fn=_interruptible).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _divided(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """(our options, the script or module with its arguments)."""
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if word == "--":
            return arguments[:place], arguments[place + 1 :]
        if word in ("-m", "--module"):
            return arguments[: place + 1], arguments[place + 1 :]
        if not word.startswith("-"):
            return arguments[:place], arguments[place:]
        place += 2 if word in ("-o", "--output", "--recompute") else 1
    return arguments, ()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--module", action="store_true", help="run a module, not a file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=named, help="the trace; default: SCRIPT.kvt here"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--recompute",
        choices=RECOMPUTE,
        default="once",
        help="compare with the same tokens computed without a cache: once at the end (default), "
        "after each step, or not at all",
    )
    parser.add_argument(
        "--keep-rows",
        action="store_true",
        help="keep the recomputed lane's rows however large; default: up to 256 MiB a pass",
    )
    parser.add_argument("--open", action="store_true", help="open the trace when it is over")
    parser.add_argument("--cpu", action="store_true", help="let `cuda` mean the CPU in the script")


VERB = Verb(
    name="run",
    usage="[-o FILE] [--force] [--recompute HOW] [--keep-rows] [--open] [--cpu]\n"
    "    (SCRIPT | -m MODULE) [ARGS …]",
    summary="Run a Python script untouched, and record what attends in it: every outermost call "
    "of a\nmodel with tokens is a step, training is left out. Options of kvtrace come before the "
    "script;\nwhat comes after is the script's. Its input, output and exit code are its own; "
    "what was recorded\nis said on stderr.",
    examples=(
        ("kvtrace run sample.py --start hello", "trace in sample.kvt"),
        ("kvtrace run -o a.kvt --open chat.py", "and look at it"),
        ("kvtrace run -m my.package.generate -n 20", "a module"),
        ("kvtrace run --cpu train.py", "a script that says .cuda(), without a GPU"),
    ),
    arguments=_arguments,
    run=run,
    divided=_divided,
)
