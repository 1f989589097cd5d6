"""`kvtrace zoo`: models with a planted bug in their cache, to look at and to learn from."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.cli.shared import outputs
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.parser import named
from kvtrace.errors import RecordError, UsageError
from kvtrace.text import safe
from kvtrace.units import byte_size

if TYPE_CHECKING:
    from kvtrace_fixtures.zoo import Bug

_NARROWEST = 60


def run(values: argparse.Namespace) -> int:
    """List them, or record one and show it."""
    if values.name is None:
        print("\n".join(listing(shutil.get_terminal_size((100, 24)).columns)))
        return 0
    bug = _named(values.name)
    path = (
        outputs.chosen(values.output, force=values.force)
        if values.output is not None
        else outputs.beside(bug.name)
        if values.record
        else outputs.temporary(bug.name)
    )
    _record(bug, path, debug=values.debug)
    if values.record:
        print(f"{safe(str(path))}: {byte_size(path.stat().st_size)}, {bug.kind} planted")
        return 0
    return _show(path, mouse=not values.no_mouse)


def listing(width: int) -> list[str]:
    """All bugs as lines of a terminal of that width, those of one healthy twin together."""
    from kvtrace_fixtures.zoo import catalogue

    lines: list[str] = []
    twin = ""
    every = catalogue().values()
    names = max(len(bug.name) for bug in every)
    kinds = max(len(bug.kind) for bug in every)
    indent = " " * (names + kinds + 6)
    for bug in every:
        if bug.twin != twin:
            twin = bug.twin
            lines += (
                ["", f"in {twin.partition(':')[2]}:"]
                if lines
                else [f"in {twin.partition(':')[2]}:"]
            )
        story = bug.story + (f" Like {bug.like}." if bug.like else "")
        told = textwrap.wrap(
            story, max(_NARROWEST, width - len(indent) - 1), break_on_hyphens=False
        )
        lines.append(f"  {bug.name.ljust(names)}  {bug.kind.ljust(kinds)}  {told[0]}")
        lines += [indent + more for more in told[1:]]
    lines += ["", f"{len(every)} bugs. Open one: kvtrace zoo {next(iter(every)).name}"]
    return lines


def _named(name: str) -> Bug:
    from kvtrace_fixtures.zoo import catalogue

    found = catalogue().get(name)
    if found is None:
        near = [one for one in catalogue() if name in one][:3]
        near = near or difflib.get_close_matches(name, catalogue(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`kvtrace zoo` lists them"
        raise UsageError(f"zoo: there is no bug {safe(name)!r}; {hint}")
    return found


def _record(bug: Bug, path: Path, *, debug: bool) -> None:
    """Record in a process of its own: nothing here loads torch."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"recording {bug.name} …", end="", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "kvtrace_fixtures.zoo", bug.name, str(path)]
    made = subprocess.run(command, capture_output=not debug, check=False, env=os.environ.copy())
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if made.returncode:
        told = (made.stderr or b"").decode("utf-8", "replace").strip().splitlines()
        why = safe(told[-1], 300) if told else f"it ended with {made.returncode}"
        raise RecordError(f"zoo {bug.name}: {why}; --debug shows what was printed")


def _show(path: Path, *, mouse: bool) -> int:
    from kvtrace.cli.open import show_trace

    return show_trace(path, mouse=mouse)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="which one; without it, a list")
    parser.add_argument("--record", action="store_true", help="record it, without a screen")
    parser.add_argument("-o", "--output", metavar="FILE", type=named, help="where to keep it")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")


VERB = Verb(
    name="zoo",
    usage="[NAME] [--record] [-o FILE]",
    summary="Models with a planted bug in their cache: break it yourself and watch. Each is a few "
    "lines\nbeside its healthy twin. Without NAME they are listed, each with the name that "
    "`kvtrace check`\nshould give it.",
    examples=(
        ("kvtrace zoo", "all of them"),
        ("kvtrace zoo rope-restarts", "record one and open it"),
        ("kvtrace zoo square-mask --record -o a.kvt", "only record it; then kvtrace check a.kvt"),
    ),
    arguments=_arguments,
    run=run,
)
