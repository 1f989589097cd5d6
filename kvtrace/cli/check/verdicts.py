"""Telling a verdict: as text while it is found, as JSON, as JUnit XML, or in one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from kvtrace.analysis.checks.advice import closing, finding_lines, headline, lines, runs
from kvtrace.analysis.checks.report import DIVERGED, UNCHECKED, Finding, Report, Trial
from kvtrace.cli.shared import junit
from kvtrace.cli.show.plain import SCHEMA, Plain, plain

_WIDEST = 100


class Teller:
    """Prints findings as soon as they are known, and at the end what is left to say.

    Attributes:
        how: "text", "verbose", "quiet" or "json".
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self._told: set[str] = set()

    def found(self, finding: Finding, run: Trial) -> None:
        """A finding of a run that is still being checked; `run` says its name and trace."""
        early = self.how in ("text", "verbose") and finding.kind.bug
        if not early or finding.name in self._told:
            return
        first = not self._told
        self._told.add(finding.name)
        if first:
            so_far = Trial(run.name, Report(DIVERGED, (finding,)), run.trace)
            print(headline(Report(DIVERGED, (finding,), trials=(so_far,))))
        print("", *finding_lines(finding, run, titled=not first, width=_width()), sep="\n")
        sys.stdout.flush()

    def end(self, report: Report) -> None:
        """Everything is known."""
        if self.how == "json":
            print(json.dumps({"schema": SCHEMA, **facts(report)}, indent=1))
        elif self.how == "quiet":
            print(headline(report))
        elif self._told:
            self._rest(report)
        else:
            print("\n".join(lines(report, verbose=self.how == "verbose", width=_width())))

    def _rest(self, report: Report) -> None:
        """What could not be said before everything was known."""
        verbose = self.how == "verbose"
        for one in report.trials:
            for finding in one.report.findings:
                if finding.name not in self._told:
                    self._told.add(finding.name)
                    print("", *finding_lines(finding, one, width=_width()), sep="\n")
        if len(report.trials) > 1 or verbose:
            print("", *runs(report, verbose=verbose), sep="\n")
        if told := closing(report, width=_width()):
            print("", *told, sep="\n")


def _width() -> int:
    return min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)


def facts(report: Report) -> dict[str, Plain]:
    """A report as JSON says it."""
    out: dict[str, Plain] = {
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "reason": report.reason,
        "steps": report.steps,
        "findings": [_finding(one) for one in report.findings],
        "largest": plain(dict(report.largest)),
        "flips": plain(report.flips),
        "caveats": plain(report.caveats),
    }
    if report.trials:
        out["runs"] = [_run(one) for one in report.trials]
    return out


def _run(one: Trial) -> Plain:
    about: dict[str, Plain] = {
        "name": one.name,
        "trace": one.trace or None,
        "essential": one.essential,
    }
    return about | facts(one.report)


def _finding(found: Finding) -> Plain:
    kind = found.kind
    more: Mapping[str, Plain] = {
        "means": kind.means,
        "cause": kind.cause,
        "bug": kind.bug,
        "at": found.at,
    }
    fields = plain(found)
    return {**fields, **more} if isinstance(fields, dict) else fields


def write_junit(report: Report, path: Path, suite: str) -> None:
    """The report as JUnit XML: one test case a run.

    Raises:
        OSError: It can't be written.
    """
    trials = _told_apart(report.trials or (Trial(suite, report),))
    junit.write(path, suite, [_case(one, suite) for one in trials])


def _told_apart(trials: Sequence[Trial]) -> list[Trial]:
    """Runs that did the same are named by their traces too: programs know a case by its name."""
    names = [one.name for one in trials]
    return [
        replace(one, name=f"{one.name} ({Path(one.trace).name})")
        if names.count(one.name) > 1 and one.trace
        else one
        for one in trials
    ]


def _case(one: Trial, suite: str) -> junit.Case:
    report, name = replace(one.report, trials=(one,)), one.name or suite
    if report.ok:
        return junit.Case(name)
    outcome, what = "failure", next((found.name for found in report.findings), report.verdict)
    if report.verdict == UNCHECKED:
        outcome, what = "error" if one.essential else "skipped", report.verdict
    return junit.Case(name, outcome, what, lines(report), headline(report))
