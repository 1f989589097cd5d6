"""`kvtrace check`: rounding or bug, where it starts, and which bug it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.cli import options
from kvtrace.cli.grammar import Verb
from kvtrace.errors import UsageError

if TYPE_CHECKING:
    from kvtrace.analysis.checks import Report
    from kvtrace.cli.verdicts import Teller


def run(values: argparse.Namespace) -> int:
    """Check; the exit code says the verdict."""
    from kvtrace.cli.verdicts import Teller, write_junit

    how = next((name for name in ("json", "quiet", "verbose") if getattr(values, name)), "text")
    teller = Teller(how)
    traces = _traces(values.words)
    report = _of_traces(traces, teller)
    teller.end(report)
    if values.junit is not None:
        write_junit(report, values.junit, f"kvtrace check {' '.join(values.words)}")
    return report.exit_code


def _traces(words: list[str]) -> list[Path]:
    """Words that are traces; one that is makes all of them so."""
    named = [Path(word) for word in words if word.endswith(".kvt")]
    if named and len(named) < len(words):
        other = next(word for word in words if not word.endswith(".kvt"))
        raise UsageError(f"{other!r} stands beside a trace; check traces, or a model and a prompt")
    return named


def _of_traces(paths: list[Path], teller: Teller) -> Report:
    """Traces as they are."""
    from kvtrace.analysis.checks.report import Report, Trial, together
    from kvtrace.analysis.checks.verdict import checked
    from kvtrace.analysis.course import course
    from kvtrace.files import open_trace

    def look(path: Path) -> Trial:
        trace = open_trace(path)
        known = Trial(course(trace), Report(""), str(path))
        return checked(trace, str(path), lambda one: teller.found(one, known))

    return together([look(path) for path in paths])


def _arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser)
    told = parser.add_argument_group("the verdict")
    one = told.add_mutually_exclusive_group()
    one.add_argument("--json", action="store_true", help="as JSON, nothing rounded")
    one.add_argument("-q", "--quiet", action="store_true", help="one line")
    one.add_argument("-v", "--verbose", action="store_true", help="every finding of every run")
    told.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit XML there too")


VERB = Verb(
    name="check",
    usage="[MODEL [PROMPT] | TRACE...] [options]",
    summary="Compare cached with recomputed attention: equal within rounding (exit code 0), "
    "diverged (1)\nwith the place and the likely bug, or could not check (3).",
    examples=(("kvtrace check a.kvt", "a recorded run, without torch"),),
    arguments=_arguments,
    run=run,
)
