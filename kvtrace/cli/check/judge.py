"""Judges traces, each as soon as it is recorded, and shows how far it is with a long one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.report import UNCHECKED, Finding, Report, Trial, together
from kvtrace.analysis.checks.verdict import check
from kvtrace.analysis.checks.whole_run.leftover import beyond
from kvtrace.analysis.checks.whole_run.one_at_a_time import excused
from kvtrace.analysis.course import course
from kvtrace.cli.check.verdicts import Teller
from kvtrace.cli.shared.follow import StatusLine, follow
from kvtrace.errors import RecordError
from kvtrace.files import open_trace
from kvtrace.files.reading.stored import held
from kvtrace.live.messages import Progress, Request, Tried
from kvtrace.verify.ways import named

_TICK = 0.2


class Judge:
    """Looks at each trace as soon as it is there."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._trials: list[Trial] = []
        self._limits: Noise | None = None
        self._fresh: Mapping[int, int] | None = None

    def report(self, request: Request, *, debug: bool) -> Report:
        """All of them together.

        Raises:
            KvtraceError: What the recorder gave up with, unless it just could not record.
        """
        try:
            follow(request, debug=debug, on_tried=self._tried)
        except RecordError as error:
            failed = Report(UNCHECKED, reason=str(error))
            name = "the ways after it" if self._trials else ""
            self._trials.append(Trial(name, failed, essential=not self._trials))
        return together(self._trials)

    def _tried(self, event: Tried) -> None:
        """A way was tried."""
        first = event.way == "decode"
        if not event.path:
            failed = Report(UNCHECKED, reason=event.trouble)
            self._trials.append(Trial(event.title, failed, essential=first))
            return
        path = Path(event.path)
        fresh = self._fresh if event.way in ("again", "own") else None
        looked = look(path, self._teller, self._limits, event.way, fresh, presumed=event.presumed)
        self._trials.append(looked)
        limits = self._trials[0].report.limits
        if first and limits is not None:
            self._limits, self._fresh = limits, beyond(open_trace(path))


def look(
    path: Path,
    teller: Teller,
    at_least: Noise | None = None,
    way: str = "decode",
    fresh: Mapping[int, int] | None = None,
    presumed: bool = False,
    stored: bool = False,
) -> Trial:
    """One trace; its findings are told at once, unless they may be excused.

    Args:
        path: Of the trace.
        teller: Hears of findings.
        at_least: What counted as rounding in another run.
        way: How it was recorded.
        fresh: What the first run of the model saw beyond its tokens.
        presumed: Findings may be excused.
        stored: It was not recorded just now: all of it is held against its checksums.
    """
    trace = open_trace(path)
    line = _Looking(path.name, len(trace))
    if stored:
        held(trace, line.read)
    known = Trial(named(way, course(trace)), Report(""), str(path), essential=way == "decode")

    def found(one: Finding) -> None:
        line.clear()
        teller.found(one, known)

    told = None if presumed else found
    report = check(trace, on_finding=told, at_least=at_least, on_step=line.step, fresh=fresh)
    if presumed:
        report = excused(trace, report)
        for one in report.findings:
            found(one)
    line.clear()
    return replace(known, report=report)


class _Looking:
    """How far a long trace has been looked at, on a terminal's stderr."""

    def __init__(self, name: str, steps: int) -> None:
        self._line = StatusLine(debug=False)
        self.clear = self._line.clear
        self._name, self._steps, self._done = name, steps, 0
        self._shown = time.monotonic()

    def read(self, share: float) -> None:
        """So much of it was held against its checksums."""
        self._tell(f"reading {self._name}", share)

    def step(self, _number: int) -> None:
        """Another step."""
        self._done += 1
        share = self._done / max(self._steps, 1)
        self._tell(f"checking {self._name}, step {self._done}", share)

    def _tell(self, what: str, share: float) -> None:
        now = time.monotonic()
        if now - self._shown > _TICK:
            self._shown = now
            self._line.show(Progress(what, share))
