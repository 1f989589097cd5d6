"""What a step did, and the one sentence in which a learner reads it."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from kvtrace import units
from kvtrace.analysis.candidates import Candidates, candidates
from kvtrace.analysis.cost.costs import StepCost, step_cost
from kvtrace.analysis.cost.extent import Extent, extent
from kvtrace.analysis.phase import phase
from kvtrace.analysis.rows.changes import LayerChange, changes, event_text
from kvtrace.analysis.rows.packed import request_name
from kvtrace.trace import CACHED, Step, Trace

WITHOUT_CACHE = "recomputed"
_REMARK, _CACHED_ROWS, _SEQUENCES, _OTHER_TIME = 1, 2, 3, 4
LAST_WAY = _OTHER_TIME
"""What gives way in a sentence that has too little room, the least needed first."""


class Phrase(Struct, frozen=True):
    """A piece of the sentence.

    Attributes:
        text: Words.
        lane: The lane whose number it is, "cached" or "recomputed"; empty: neither.
        gives_way: Where the sentence has too little room, all pieces that give way as 1 become
            their short form first, then those as 2, and so on up to `LAST_WAY`; 0: never.
        short: What is left of it then.
    """

    text: str
    lane: str = ""
    gives_way: int = 0
    short: str = ""


def shortened(pieces: tuple[Phrase, ...], way: int) -> tuple[Phrase, ...]:
    """The sentence after all pieces have given way up to one number."""
    return tuple(
        replace(one, text=one.short) if 0 < one.gives_way <= way else one for one in pieces
    )


class Summary(Struct, frozen=True):
    """What a step did.

    Attributes:
        number: Of the step.
        extent: Rows computed, read, avoided.
        layers: What happened to each cache layer.
        events: Changes of the cache before the step, in words.
        candidates: What could come next, and what was chosen.
        sentence: All of it in one sentence.
    """

    number: int
    extent: Extent
    layers: tuple[LayerChange, ...]
    events: tuple[str, ...]
    candidates: Candidates
    sentence: str


def summary(trace: Trace, number: int, sequence: int = 0) -> Summary:
    """Everything about a step that needs no tensor.

    Args:
        trace: The trace.
        number: Step.
        sequence: Row of the batch, for tokens and candidates.

    Raises:
        MissingError: There is no such step.
    """
    step = trace.step(number)
    rows, cost = extent(trace, number), step_cost(trace, number)
    return Summary(
        number=number,
        extent=rows,
        layers=changes(trace, number),
        events=tuple(event_text(event) for event in step.events),
        candidates=candidates(trace, number, sequence),
        sentence="".join(one.text for one in _phrases(step, phase(trace, step), rows, cost)),
    )


def phrases(trace: Trace, number: int) -> tuple[Phrase, ...]:
    """What a step did and saved: a sentence, in pieces that say whose lane a number is of.

    Raises:
        MissingError: There is no such step.
    """
    cost = step_cost(trace, number)
    step = trace.step(number)
    return tuple(_phrases(step, phase(trace, step), extent(trace, number), cost))


def _phrases(step: Step, of: str, rows: Extent, cost: StepCost) -> Iterator[Phrase]:
    about = filter(None, ("" if of == "decode" else of, request_name(step)))
    said = " of ".join(about)
    name = f"step {step.number} ({said})" if said else f"step {step.number}"
    saved = rows.without_cache > rows.computed
    if not step.sites:
        price = f"{units.flops(cost.cached.flops)}, {_time(cost.cached.elapsed_ns)}"
        yield Phrase(f"{name} took in ")
        yield Phrase(units.counted(step.new, "token"), CACHED)
        yield Phrase(f"{_each(rows)}, and no attention was seen in it: {price}")
        return
    yield Phrase(f"{name} computed ")
    yield Phrase(_count(rows.computed), CACHED)
    yield Phrase(f" of {'Q and latents' if rows.latents else 'Q, K, V'}")
    if rows.sequences > 1:
        yield Phrase(_each(rows), "", _SEQUENCES, f" ×{rows.sequences} sequences")
    if not rows.keeps and rows.read_most == 0:
        yield from _uncached(rows, cost, step.cost.cached.head_all)
        return
    if saved:
        yield from (Phrase(" instead of "), Phrase(str(rows.without_cache), WITHOUT_CACHE))
    yield Phrase(", " if rows.expanded else " and ")
    yield from _read(rows)
    if rows.expanded:
        yield from (Phrase(" and made K, V from "), Phrase(str(rows.expanded), CACHED))
    yield Phrase(": ")
    yield from _prices(cost, saved)


def _read(rows: Extent) -> Iterator[Phrase]:
    """What came out of the cache."""
    if rows.read_most == 0 and rows.rewritten:
        yield from (Phrase("wrote "), Phrase(_count(rows.rewritten), CACHED))
        yield Phrase(" of the cache anew")
    elif rows.read_most == 0:
        what = "them" if rows.latents else "K and V"
        yield Phrase(f"put {what} into an empty cache")
    elif rows.read_least == rows.read_most:
        yield Phrase("read ")
        yield from _from_cache(str(rows.read_most), units.counted(rows.read_most, "row"))
    else:
        span = f"{rows.read_least} to {rows.read_most}"
        yield Phrase("read ")
        yield from _from_cache(span, f"{span} rows")
        yield Phrase(", by layer")
    if rows.cross_read:
        yield Phrase(f", and {_count(rows.cross_read)} of the encoder")


def _from_cache(number: str, rows: str) -> Iterator[Phrase]:
    """`24 rows from the cache`, or in short `24 cached rows`."""
    yield Phrase(rows, CACHED, _CACHED_ROWS, rows.replace(number, f"{number} cached", 1))
    yield Phrase(" from the cache", "", _CACHED_ROWS)


def _uncached(rows: Extent, cost: StepCost, every: int) -> Iterator[Phrase]:
    """A step that kept nothing: what a cache would have saved.

    Every FLOP of a forward without cache is proportional to its query rows, but for logits that
    are those of the last row alone.

    Args:
        rows: Of the step.
        cost: Of the step.
        every: FLOPs of the logits of every row.
    """
    price = f"{units.flops(cost.cached.flops)}, {_time(cost.cached.elapsed_ns)}"
    if not 0 < rows.fresh < rows.computed:
        yield Phrase(f" and kept none of them: {price}")
        return
    head = cost.parts[-1].cached
    logits = min(head, every * rows.fresh // rows.computed)
    with_cache = (cost.cached.flops - head) * rows.fresh // rows.computed + logits
    yield Phrase(f" though only {_count(rows.fresh)} {'was' if rows.fresh == 1 else 'were'} new: ")
    yield Phrase(price, WITHOUT_CACHE)
    yield Phrase("; with a cache about ")
    yield from (Phrase(units.flops(with_cache), CACHED), Phrase(" would do"))


def _prices(cost: StepCost, saved: bool) -> Iterator[Phrase]:
    """FLOPs and milliseconds in both lanes."""
    mine, theirs = cost.cached, cost.recomputed
    if not saved:
        yield Phrase(f"{units.flops(mine.flops)}, {_time(mine.elapsed_ns)}")
        return
    about = "about " if cost.estimated else ""
    yield from _instead(units.flops(mine.flops), units.flops(theirs.flops), about)
    yield Phrase(", ")
    if mine.elapsed_ns is None:
        yield Phrase("time not measured")
    elif theirs.elapsed_ns is None:
        yield Phrase(_time(mine.elapsed_ns), CACHED)
        yield Phrase(" (without the cache: not measured)", "", _REMARK)
    else:
        ours, *others = _instead(_time(mine.elapsed_ns), _time(theirs.elapsed_ns))
        yield from (ours, *(replace(one, gives_way=_OTHER_TIME) for one in others))


def _instead(mine: str, theirs: str, about: str = "") -> Iterator[Phrase]:
    """`2.1 MFLOP instead of 28.9`: the unit once where both have the same."""
    number, _, unit = theirs.partition(" ")
    same = mine.partition(" ")[2] == unit
    yield Phrase(mine, CACHED)
    yield Phrase(f" instead of {about}")
    yield Phrase(number if same else theirs, WITHOUT_CACHE)


def _time(elapsed_ns: int | None) -> str:
    return "time not measured" if elapsed_ns is None else units.duration(elapsed_ns)


def _count(rows: int) -> str:
    return units.counted(rows, "row")


def _each(rows: Extent) -> str:
    return f" in each of {rows.sequences} sequences" if rows.sequences > 1 else ""
