"""`kvtrace info`: what is in a trace file, every string included, before it is shared."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.parser import named
from kvtrace.cli.show.plain import plain
from kvtrace.text import safe
from kvtrace.units import byte_size, counted

if TYPE_CHECKING:
    from kvtrace.files.describe import FileReport

_QUIET_S = 1.0
"""Before anything is said about how far it is."""


def run(values: argparse.Namespace) -> int:
    """Print the report; 4 when something of the trace is missing."""
    from kvtrace.cli.shared.follow import StatusLine
    from kvtrace.files.describe import describe
    from kvtrace.live.messages import Progress

    line, began, shown = StatusLine(debug=False), time.monotonic(), 0

    def told(share: float) -> None:
        nonlocal shown
        percent = int(100 * share)
        if percent > shown and time.monotonic() - began > _QUIET_S:
            shown = percent
            line.show(Progress("reading every row", percent / 100))

    try:
        report = describe(values.file, told)
    finally:
        line.clear()
    if values.json:
        print(json.dumps(plain(report), indent=2))
    else:
        print("\n".join(_lines(report)))
    return 0 if report.ending is not None and not report.damage else 4


def _lines(report: FileReport) -> list[str]:
    ending = _unfinished(report) if report.ending is None else _ended(report)
    lines = [
        f"{safe(report.name)}: kvtrace trace, format {report.version}, {byte_size(report.size)}",
        f"{counted(report.steps, 'step')}, {ending}",
        "",
        "frames",
        *(
            f"  {safe(kind):<6} {number:>7}   {byte_size(size):>9}"
            for kind, (number, size) in report.frames.items()
        ),
    ]
    if report.damage:
        lines += ["", "damage", *(f"  {safe(text, 1000)}" for text in report.damage)]
    lines += ["", f"strings ({len(report.strings)}), with how often each occurs"]
    lines += [f"  {number:>7}   {safe(text, 1000)}" for text, number in report.strings.items()]
    if report.unlisted:
        lines += [
            "",
            f"not listed: what {counted(report.unlisted, 'byte')} hold that belong to no frame "
            "that can be read; `kvtrace recover` makes a copy without them",
        ]
    return lines


def _unfinished(report: FileReport) -> str:
    """A recording that was cut off, and where."""
    torn = report.size - report.whole
    where = f", and its last {byte_size(torn)} are torn" if torn else ""
    return f"incomplete: the recording did not end; whole up to byte {report.whole:,}{where}"


def _ended(report: FileReport) -> str:
    ending = report.ending
    if ending is None:
        return ""
    return f"ended: {safe(ending.reason)}" + (f", {safe(ending.text)}" if ending.text else "")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=named, help="a trace (.kvt)")
    parser.add_argument("--json", action="store_true", help="as JSON, strings in full")


VERB = Verb(
    name="info",
    usage="FILE [--json]",
    summary="List what is in a trace file: frames, bytes, damage, and every string in it, so that "
    "you\nsee what you share. Exit code 4: it was read but is incomplete or damaged.",
    examples=(
        ("kvtrace info a.kvt", "frames and strings"),
        ("kvtrace info a.kvt --json", "the same for programs"),
    ),
    arguments=_arguments,
    run=run,
)
