"""The list of what was found: the answer first, then each finding with its meaning and cause."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from kvtrace.text import safe
from kvtrace.trace import Damage
from kvtrace.units import counted
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece
from kvtrace_tui.found import Answer, Found
from kvtrace_tui.screens.pages.choices import Rows

Row = Sequence[Piece]
_DAMAGE_SHOWN = 20
_INKS = {"✗": ink.BAD, "!": ink.WARN, "·": ink.TOKEN}


def finding_rows(
    answer: Answer,
    found: Sequence[Found],
    width: int,
    chosen: int,
    damage: Sequence[Damage],
) -> Rows:
    """All lines of the list; each finding is a choice."""
    rows = [(row, -1) for row in damage_rows(damage, width)]
    rows += [(row, -1) for row in answer_rows(answer, found, width)]
    for index, one in enumerate(found):
        rows += [(row, index) for row in found_rows(one, width, index == chosen)]
    return rows


def damage_rows(damage: Sequence[Damage], width: int) -> Iterator[Row]:
    """What can't be read of the file: the answer does not cover it."""
    if not damage:
        return
    yield []
    yield [(f" ▲ {len(damage)} damaged: can't be read, and is not shown as anything", ink.BAD)]
    for one in damage[:_DAMAGE_SHOWN]:
        for part in textwrap.wrap(safe(one.text, 600), max(width - 6, 20)):
            yield [(f"   {part}", ink.TEXT)]
    if len(damage) > _DAMAGE_SHOWN:
        yield [(f"   and {len(damage) - _DAMAGE_SHOWN} more: kvtrace info lists all", ink.DIM)]


def answer_rows(answer: Answer, found: Sequence[Found], width: int) -> Iterator[Row]:
    """The verdict with its reasons."""
    style = ink.GOOD if answer.equal else ink.BAD if answer.diverged else ink.WARN
    sign = "✓ " if answer.equal else "✗ " if answer.diverged else ""
    verdict = answer.verdict or "only the cached lane was recorded: there is nothing to hold it to"
    if answer.equal and any(one.apart for one in found):
        verdict += ", but for what is no bug"
    yield []
    yield [(f" {sign}{verdict}", style), (_counts(found), ink.DIM)]
    for text in answer.lines:
        for part in textwrap.wrap(text, max(width - 6, 20)):
            yield [(f"   {part}", ink.TEXT)]
    yield []
    if not found and not answer.awaited:
        yield [(" Nothing was found, and nobody wrote anything into this trace.", ink.DIM)]


def _counts(found: Sequence[Found]) -> str:
    """How many, as the status line counts: what is no bug is no finding."""
    grave = sum(one.grave for one in found)
    parts = ((grave, "finding"), (len(found) - grave, "remark"))
    return "".join(f" · {counted(count, noun)}" for count, noun in parts if count)


def found_rows(one: Found, width: int, chosen: bool) -> Iterator[Row]:
    """One finding as a paragraph."""
    lead = ink.CHOSEN if chosen else _INKS[one.sign]
    yield [(f" {one.sign} {one.name} ", lead), (f" {one.place}", ink.STRONG if chosen else ink.DIM)]
    parts = (
        ("", one.said, ink.TEXT),
        ("it is", one.means, ink.TEXT),
        ("usual cause" if one.grave else "why", one.cause, ink.TEXT),
        ("look at", one.code, ink.TOKEN),
    )
    for label, text, style in parts:
        for number, part in enumerate(textwrap.wrap(text, max(width - 20, 20))):
            yield [(f"   {'' if number else label:<12} ", ink.DIM), (part, style)]
    yield []
