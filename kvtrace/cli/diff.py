"""`kvtrace diff`: two traces of one model: where they part first, and by how much."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.outputs import report
from kvtrace.cli.shared.parser import named

if TYPE_CHECKING:
    from kvtrace.analysis.two_runs.diff import Diff


def run(values: argparse.Namespace) -> int:
    """Compare; the exit code says the verdict."""
    from kvtrace.analysis.two_runs.diff import diff
    from kvtrace.files import open_trace

    found = diff(open_trace(values.old), open_trace(values.new))
    if values.json:
        print(json.dumps(_facts(found), indent=1))
        if values.junit is None:
            return found.exit_code
    from kvtrace.analysis.two_runs.told import lines

    told = lines(found, (str(values.old), str(values.new)))
    if not values.json:
        print("\n".join(told[:1] if values.quiet else told))
    if values.junit is not None:
        _write_junit(values.junit, found, told, f"kvtrace diff {values.old} {values.new}")
    return found.exit_code


def _write_junit(path: Path, found: Diff, told: list[str], suite: str) -> None:
    """One test case: a difference fails it, and so does what can't be compared."""
    from kvtrace.analysis.checks.report import DIVERGED, EQUAL
    from kvtrace.cli.shared import junit

    what = found.verdict if found.finding is None else found.finding.name
    outcome = {EQUAL: "", DIVERGED: "failure"}.get(found.verdict, "error")
    junit.write(path, suite, [junit.Case(suite, outcome, what, told)])


def _facts(found: Diff) -> object:
    from kvtrace.cli.show.plain import SCHEMA, plain

    facts = plain(found)
    head = {"schema": SCHEMA, "exit_code": found.exit_code}
    return {**head, **facts} if isinstance(facts, dict) else facts


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", type=named, help="the run that is taken as right")
    parser.add_argument("new", metavar="NEW", type=named, help="the run that may differ")
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--json", action="store_true", help="as JSON, nothing rounded")
    told.add_argument("-q", "--quiet", action="store_true", help="one line")
    parser.add_argument("--junit", metavar="FILE", type=report, help="write JUnit XML there too")


VERB = Verb(
    name="diff",
    usage="OLD NEW [--json | -q] [--junit FILE]",
    summary="Compare two traces of one model: another dtype, library version, attention "
    "implementation or\ncache, or before and after your change. Aligned by tokens, however they "
    "were fed. Says where they\npart first and how the difference grows through the layers. Needs "
    "no torch.\n\nExit code 0: equal within rounding. 1: diverged. 3: could not check.",
    examples=(
        ("kvtrace diff before.kvt after.kvt", "did my change change anything?"),
        ("kvtrace diff eager.kvt sdpa.kvt --json", "for programs"),
    ),
    arguments=_arguments,
    run=run,
)
