"""Verdicts as JUnit XML, which programs that run tests read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from msgspec import Struct

from kvtrace.errors import WriteError
from kvtrace.text import safe


class Case(Struct, frozen=True):
    """One test case.

    Attributes:
        name: Known by it.
        outcome: "" where it passed, else "failure", "error" or "skipped".
        what: Kind of it, in a word.
        lines: What the terminal says; the first line is the message.
        message: Another message, where the first line is none.
    """

    name: str
    outcome: str = ""
    what: str = ""
    lines: Sequence[str] = ()
    message: str = ""


def write(path: Path, suite: str, cases: Sequence[Case]) -> None:
    """A test suite of these cases.

    Raises:
        WriteError: It can't be written.
    """
    failures, errors, skipped = (
        sum(one.outcome == outcome for one in cases) for outcome in ("failure", "error", "skipped")
    )
    head = (
        f'<testsuite name={_attribute(suite)} tests="{len(cases)}" failures="{failures}" '
        f'errors="{errors}" skipped="{skipped}">'
    )
    told = (_case(one, suite) for one in cases)
    text = "\n".join(['<?xml version="1.0" encoding="utf-8"?>', head, *told, "</testsuite>", ""])
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:  # of a disk that is full, the system names no file
        raise WriteError(
            f"{safe(str(path))}: the report can't be written: {error.strerror}"
        ) from None


def _case(one: Case, suite: str) -> str:
    head = f"<testcase classname={_attribute(suite)} name={_attribute(one.name)}"
    if not one.outcome:
        return f"{head}/>"
    message = one.message or next(iter(one.lines), one.what)
    body = f"<{one.outcome} type={_attribute(one.what)} message={_attribute(message)}>"
    told = escape("\n".join(one.lines))
    return f"{head}>{body}{told}</{one.outcome}></testcase>"


def _attribute(text: str) -> str:
    return quoteattr(safe(text, 1000))
