"""What there is to find in a trace: notes in it, and what comparing its lanes says.

Pure, but not quick: the check reads every step. Knows nothing of Textual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtrace.text import safe
from kvtrace.trace import Note, Trace
from kvtrace_tui.found import Answer, Found

if TYPE_CHECKING:
    from kvtrace.analysis.checks.report import Finding

_LONGEST = 600
_UNTOLD = "UNKNOWN: "
_SHOWN = ("finding", "bookmark", "note")


def noted(trace: Trace) -> tuple[Found, ...]:
    """What people and the recorder wrote into the trace, in order."""
    found = {_of_note(note) for note in trace.notes if note.kind in _SHOWN}
    return tuple(sorted(found, key=lambda one: one.order))


def search(trace: Trace, lane: str, told: Callable[[Found], None]) -> Answer:
    """Compare the lanes of a whole trace.

    Args:
        trace: It is read to its end.
        lane: What the cached lane is held against.
        told: Hears of each finding as soon as it is found.
    """
    if trace.meta.lane(lane) is None:
        return Answer()
    # the checks are loaded when they are first needed, which is after the first picture
    from kvtrace.analysis.checks.advice import closing
    from kvtrace.analysis.checks.verdict import check

    try:
        report = check(trace, lane, lambda finding: told(_of_finding(finding)))
    except Exception as error:
        # whatever a file makes the checks stumble over, it can still be looked at
        return Answer("could not check", (safe(str(error), _LONGEST),))
    reason = () if report.ok or report.findings else (safe(report.reason, _LONGEST),)
    return Answer(report.verdict, (*reason, " ".join(closing(report, width=10_000))))


def merged(found: tuple[Found, ...], one: Found) -> tuple[Found, ...]:
    """With one more, in order; a note that says what a check says is that check's."""
    same = f"{one.name}: {one.said}"
    rest = [old for old in found if old != one and old.said != same]
    return tuple(sorted([*rest, one], key=lambda each: each.order))


def _of_note(note: Note) -> Found:
    """What the recorder could not compare is no bug that it found, as the checks have it."""
    untold = note.kind == "finding" and note.text.startswith(_UNTOLD)
    return Found(
        note.step,
        "not compared" if untold else safe(note.kind, 20),
        safe(note.text.removeprefix(_UNTOLD) if untold else note.text, _LONGEST),
        layer=note.site,
        head=note.head,
        sequence=note.sequence,
        grave=note.kind == "finding" and not untold,
        stops=note.kind != "note" and not untold,
    )


def _of_finding(finding: Finding) -> Found:
    said = safe(finding.evidence, _LONGEST)
    if finding.since:
        said = f"{said}; {safe(finding.since, _LONGEST)}"
    return Found(
        finding.step,
        safe(finding.name, 60),
        said + safe(finding.whom, 60),
        layer=finding.shown,
        head=finding.head,
        tensor=safe(finding.tensor, 20),
        row=finding.row,
        slot=finding.slot,
        sequence=finding.sequences[0] if finding.sequences else 0,
        means=finding.kind.means,
        cause=finding.kind.cause,
        code=safe(finding.code, 200),
        grave=finding.kind.bug,
    )
