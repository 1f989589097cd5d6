"""Where to stop: steps, tokens and findings, and the next one in either direction.

Pure; knows nothing of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

from kvtrace.errors import UsageError
from kvtrace.trace import Trace
from kvtrace_tui.found import Found


class BreakKind(StrEnum):
    """What a breakpoint waits for."""

    STEP = "step"
    TOKEN = "token"
    FINDING = "finding"


class Breakpoint(Struct, frozen=True, order=True):
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


class Stop(Struct, frozen=True):
    """A place where `c` stops.

    Attributes:
        step: Number of a recorded step.
        reason: The condition, or what was found.
        found: What was found there; None: a condition.
    """

    step: int
    reason: str
    found: Found | None = None


def stops(trace: Trace, breakpoints: Breakpoints, found: Sequence[Found] = ()) -> list[Stop]:
    """All stops, by step; at one step the conditions as one, then each thing found, in order."""
    recorded = set(trace.numbers)
    conditions: dict[int, Stop] = {}
    places: dict[Found, Stop] = {}
    for one in sorted(breakpoints, key=_order):
        for stop in _stops(trace, one, found):
            if stop.step not in recorded:
                continue
            if stop.found is None:
                conditions.setdefault(stop.step, stop)
            else:
                places.setdefault(stop.found, stop)
    ordered = [*conditions.values(), *places.values()]
    return sorted(ordered, key=lambda stop: (stop.step, stop.found.order if stop.found else ()))


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


def next_stop(
    stops: Sequence[Stop], now: int, direction: int, on: Stop | None = None
) -> Stop | None:
    """The closest stop after (1) or before (-1) a step; None if there is none.

    What was found at the step itself comes next too, until it was shown.

    Args:
        stops: In order.
        now: The step one is at.
        direction: 1 or -1.
        on: The stop one is on, if any.
    """
    if on is not None and on.step == now and on in stops:
        at = stops.index(on) + direction
        return stops[at] if 0 <= at < len(stops) else None
    ahead = [
        stop
        for stop in stops
        if (stop.step - now) * direction > 0
        or (stop.step == now and direction > 0 and stop.found is not None)
    ]
    if not ahead:
        return None
    return ahead[0] if direction > 0 else ahead[-1]


def _stops(trace: Trace, one: Breakpoint, found: Sequence[Found]) -> list[Stop]:
    if one.kind is BreakKind.STEP:
        return [Stop(int(one.text), str(one))]
    if one.kind is BreakKind.TOKEN:
        return [Stop(step, str(one)) for step in token_steps(trace, one.text)]
    words = one.text.lower()
    return [
        Stop(each.step, each.sentence, each)
        for each in found
        if each.step is not None and each.stops and words in each.sentence.lower()
    ]


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
