"""Where to stop: steps, tokens and findings, and the next one in either direction.

Pure; knows nothing of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kvtrace.errors import UsageError
from kvtrace.trace import Trace


class BreakKind(StrEnum):
    """What a breakpoint waits for."""

    STEP = "step"
    TOKEN = "token"
    FINDING = "finding"


@dataclass(frozen=True, slots=True, order=True)
class Breakpoint:
    """One condition.

    Attributes:
        kind: What it looks at.
        text: STEP: the number. TOKEN: the text, found anywhere in the token that went in or was
            chosen. FINDING: words of the finding; empty: any finding.
    """

    kind: BreakKind
    text: str = ""

    def __str__(self) -> str:
        if self.kind is BreakKind.TOKEN:
            return f'token "{self.text}"'
        return f"{self.kind} {self.text}".strip()


Breakpoints = frozenset[Breakpoint]
DEFAULT: Breakpoints = frozenset({Breakpoint(BreakKind.FINDING)})


def parse(text: str) -> Breakpoints:
    """Conditions as typed: `step 12, token "key", finding`.

    Raises:
        UsageError: A part is no condition.
    """
    return frozenset(_one(part.strip()) for part in _parts(text) if part.strip())


def written(breakpoints: Iterable[Breakpoint]) -> str:
    """Conditions as `parse` reads them."""
    return ", ".join(str(one) for one in sorted(breakpoints, key=_order))


def toggled(breakpoints: Breakpoints, step: int) -> Breakpoints:
    """The same with a breakpoint at a step, or without it."""
    return breakpoints ^ {Breakpoint(BreakKind.STEP, str(step))}


Findings = Sequence[tuple[int, str]]
"""(step, sentence) of everything that was found."""


def stops(trace: Trace, breakpoints: Breakpoints, findings: Findings = ()) -> dict[int, str]:
    """Steps to stop at, ascending, each with the reason."""
    found: dict[int, str] = {}
    recorded = set(trace.numbers)
    for one in sorted(breakpoints, key=_order):
        for step, reason in _steps(trace, one, findings):
            if step in recorded:
                found.setdefault(step, reason)
    return dict(sorted(found.items()))


def token_steps(trace: Trace, text: str) -> list[int]:
    """Steps where a token with this text went in or was chosen, ascending."""
    overview = trace.overview
    known: dict[int, bool] = {}

    def has(token: int) -> bool:
        if token not in known:
            known[token] = token >= 0 and text in trace.token_text(token)
        return known[token]

    rows = zip(
        overview["number"].tolist(),
        overview["token"].tolist(),
        overview["chosen"].tolist(),
        strict=True,
    )
    return [number for number, token, chosen in rows if has(token) or has(chosen)]


def next_stop(steps: Sequence[int], now: int, direction: int) -> int | None:
    """The closest of the steps after (1) or before (-1) `now`; None if there is none."""
    ahead = [step for step in steps if (step - now) * direction > 0]
    return min(ahead, key=lambda step: abs(step - now), default=None)


def _steps(trace: Trace, one: Breakpoint, findings: Findings) -> list[tuple[int, str]]:
    if one.kind is BreakKind.STEP:
        return [(int(one.text), str(one))]
    if one.kind is BreakKind.TOKEN:
        return [(step, str(one)) for step in token_steps(trace, one.text)]
    return [found for found in findings if one.text.lower() in found[1].lower()]


def _order(one: Breakpoint) -> tuple[int, int, str]:
    number = int(one.text) if one.kind is BreakKind.STEP else 0
    return list(BreakKind).index(one.kind), number, one.text


def _parts(text: str) -> list[str]:
    """Split at commas that are not inside quotes."""
    parts, quoted = [""], False
    for letter in text:
        quoted ^= letter == '"'
        if letter == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _one(part: str) -> Breakpoint:
    word, _, rest = part.partition(" ")
    rest = rest.strip()
    if word == BreakKind.STEP and rest.isascii() and rest.isdecimal() and len(rest) < 19:
        return Breakpoint(BreakKind.STEP, str(int(rest)))
    if word == BreakKind.TOKEN and rest.strip('"'):
        quoted = len(rest) > 2 and rest[0] == rest[-1] == '"'
        return Breakpoint(BreakKind.TOKEN, rest[1:-1] if quoted else rest)
    if word == BreakKind.FINDING:
        return Breakpoint(BreakKind.FINDING, rest)
    raise UsageError(
        f'breakpoint "{part[:40]}": expected `step NUMBER`, `token "TEXT"` or `finding WORDS`, '
        "separated by commas."
    )
