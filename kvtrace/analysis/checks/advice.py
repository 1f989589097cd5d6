"""A report as a colleague would say it: the answer, where, what it looks like, why, what to do.

Plain lines, foreign strings made safe. Knows no terminal; the command line, assertions and the
pytest plugin print the same.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding, Report, Trial
from kvtrace.text import safe

WIDTH = 96
_FINDINGS_SHOWN = 6
_TENSORS = {
    "q": "queries",
    "k": "keys",
    "v": "values",
    "mask": "the mask",
    "weights": "the attention weights",
    "output": "the attention output",
    "logits": "the logits",
}


BUT = ", but for what is no bug"
"""Of lanes that are apart by more than rounding, as the model or its cache is made to be."""


def lines(report: Report, *, verbose: bool = False, width: int = WIDTH) -> list[str]:
    """Everything a report says.

    Args:
        report: Over one run or several.
        verbose: Every finding, and the largest differences of every run.
        width: Columns.
    """
    out = [headline(report)]
    out += _diagnosis(report, verbose, width)
    if len(report.trials) > 1 or (verbose and report.trials):
        out += ["", *runs(report, verbose=verbose)]
    out += ["", *closing(report, width=width)] if closing(report, width=width) else []
    return out


def headline(report: Report) -> str:
    """The answer, in one line."""
    if report.verdict == UNCHECKED:
        return f"could not check: {safe(report.reason, 1000)}"
    if report.verdict == EQUAL:
        checked = sum(one.report.verdict != UNCHECKED for one in report.trials)
        what = f"{checked} run{'' if checked == 1 else 's'}, "
        if len(report.trials) < 2:
            what = "".join(f"{safe(one.name)}; " for one in report.trials)
        steps = "step" if report.steps == 1 else "steps"
        every = (one.report for one in report.trials or (Trial("", report),))
        but = BUT if any(one.findings for one in every) else ""
        return f"equal within rounding{but} ({what}{report.steps} {steps} compared)"
    first = next((one for one in report.findings if one.kind.bug), report.findings[0])
    return f"diverged: {title(first)}"


def title(found: Finding) -> str:
    """What and where, in words: "queries are … (POSITION-ROPE) at step 1, layer 0"."""
    return f"{found.kind.means} ({found.name}) {place(found)}"


def place(finding: Finding) -> str:
    """Where, in words: "at step 7, layer 3, kv head 2, keys, slot 12"."""
    parts = [f"at step {finding.step}", finding.where]
    if finding.head is not None:
        kv = "kv head" if finding.tensor in ("k", "v") else "head"
        parts.append(f"{kv} {finding.head}")
    if finding.tensor:
        parts.append(_TENSORS.get(finding.tensor, finding.tensor))
    if finding.slot is not None:
        parts.append(f"slot {finding.slot}")
    return ", ".join(parts) + finding.whom


def _diagnosis(report: Report, verbose: bool, width: int) -> Iterator[str]:
    """The findings, each once: a later run that shows the same only says so in its row."""
    told: set[str] = set()
    shown = 0
    for one in report.trials or (Trial("", report),):
        for found in one.report.findings:
            if (found.name in told or shown >= _FINDINGS_SHOWN) and not verbose:
                continue
            told.add(found.name)
            shown += 1
            yield ""
            yield from finding_lines(
                found, one, titled=shown > 1 or not found.kind.bug, width=width
            )


def finding_lines(found: Finding, one: Trial, *, titled: bool = True, width: int) -> Iterator[str]:
    """One finding as a paragraph.

    Args:
        found: The finding.
        one: The run that shows it.
        titled: Begin with its name and place.
        width: Columns.
    """
    if titled:
        yield f"  {'' if found.kind.bug else 'no bug: '}{title(found)}"
    if one.name:
        yield from _wrapped("in", safe(one.name), width)
    said = f"{safe(found.evidence, 1000).rstrip('.')}."
    if found.since:
        said += " " + _sentence(found.since)
    yield from _wrapped("seen", said, width)
    label = "what to do" if found.name == "UNKNOWN" else "usual cause" if found.kind.bug else "why"
    yield from _wrapped(label, found.kind.cause, width)
    if found.code:
        yield from _wrapped("look at", _code(found), width)
    if found.apart is not None and found.limit and found.apart > found.limit:
        said = (
            f"Off by {found.apart:.2g} of the largest number; rounding explains {found.limit:.1g}."
        )
        yield from _wrapped("how far", said, width)
    if one.trace:
        yield from _wrapped(
            "see it", f"kvtrace open {safe(one.trace, 1000)} --at {found.at}", 10**6
        )


def _code(found: Finding) -> str:
    """What to read, and what to suspect: it is seen in the attention, but made elsewhere."""
    written = found.tensor in ("k", "v")
    suspect = " and what writes its cache" if written else ""
    if found.name.startswith("POSITION"):
        suspect = " and the position it is given"
    elif found.tensor == "mask":
        suspect = " and what builds its mask"
    return f"{safe(found.code, 400)}{suspect}"


def runs(report: Report, *, verbose: bool = False) -> list[str]:
    """One line a run: what it was, and what was found."""
    names = [safe(one.name) for one in report.trials]
    wide = max(map(len, names), default=0)
    out = []
    for name, one in zip(names, report.trials, strict=True):
        out.append(f"  {name.ljust(wide)}  {_outcome(one, verbose)}")
        if verbose and one.report.largest:
            out.append(f"  {' ' * wide}  largest differences: {_largest(one.report)}")
        if verbose and one.trace:
            out.append(f"  {' ' * wide}  {safe(one.trace, 1000)}")
    return out


def _outcome(one: Trial, verbose: bool) -> str:
    report = one.report
    if report.verdict == EQUAL:
        named = ", ".join(dict.fromkeys(found.name for found in report.findings))
        return f"equal{', ' + named if named else ''}"
    if report.verdict == UNCHECKED:
        label = "could not check" if one.essential else "not possible here"
        most = 400 if one.essential or verbose else 100
        return f"{label}: {textwrap.shorten(safe(report.reason, 1000), most, placeholder=' …')}"
    first = next((found for found in report.findings if found.kind.bug), report.findings[0])
    return f"diverged: {first.name} at step {first.step}, {first.where}{first.whom}"


def closing(report: Report, *, width: int) -> list[str]:
    """What was held against what, what it meant for the tokens, and what is not covered."""
    out: list[str] = []
    if report.verdict != UNCHECKED and report.reason:
        far = f"Largest differences: {_largest(report)}. " if report.verdict == EQUAL else ""
        out += textwrap.wrap(f"{far}Counted as rounding: {safe(report.reason, 1000)}.", width)
    out += textwrap.wrap(_flips(report), width)
    for text in report.caveats:
        out += textwrap.wrap(f"Mind: {safe(text, 1000)}.", width, subsequent_indent="  ")
    return out


def _flips(report: Report) -> str:
    """Whether text would have shown it."""
    flips = report.flips
    if report.verdict == DIVERGED:
        if any(one.kind.bug and one.apart is None for one in report.findings):
            return ""  # both lanes may have it
        if not flips and report.logits == report.steps > 0:
            return (
                "The likeliest token is the same in every step: comparing text does not show this."
            )
        if flips:
            return f"It changes the likeliest token at step {flips[0].step}."
        return ""
    if not flips or report.verdict == UNCHECKED:
        return ""
    first = flips[0]
    more = f" and {len(flips) - 1} more" if len(flips) > 1 else ""
    return (
        f"At step {first.step}{more} the lanes prefer different tokens: the two best were "
        f"{first.margin:.2g} apart, and rounding moves these logits by {first.apart:.2g}. "
        "That is a coin toss, not a bug."
    )


def _largest(report: Report) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in report.largest)


def _sentence(text: str) -> str:
    """With a capital and one full stop; foreign strings made safe."""
    text = safe(text, 1000).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _wrapped(label: str, text: str, width: int) -> Sequence[str]:
    """A labelled paragraph."""
    indent = " " * 15
    text = re.sub(r"\s+", " ", text)
    return textwrap.wrap(
        text, max(width, 40), initial_indent=f"  {label:<13}", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
