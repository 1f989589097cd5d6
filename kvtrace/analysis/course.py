"""What a run did, in a phrase: "prefill of 12, 16 decode steps", "chunked prefill 5+5+6".

Told by the steps alone, so it is true of any trace, whoever drove the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from kvtrace.analysis.phase import ENCODER, phase
from kvtrace.analysis.rows.packed import requests_text
from kvtrace.errors import KvtraceError
from kvtrace.trace import ROWS_UNKNOWN, Step, Trace

_SHOWN = 6


def course(trace: Trace) -> str:
    """The phrase; what starts anew with nothing cached, another prompt or the same, is counted."""
    numbers = trace.numbers
    if not numbers:
        return "nothing"
    if any(note.text.endswith(ROWS_UNKNOWN) for note in trace.notes):
        many = f"{len(numbers)} step{'' if len(numbers) == 1 else 's'}"
        return f"{many} whose rows stand for no single token"
    read = [trace.step(number) for number in numbers[:_MANY]]
    beyond = len(numbers) - len(read)
    batched = requests_text(read)
    if batched:
        return f"{batched}, and more" if beyond else batched
    phases = {step.number: phase(trace, step) for step in read}
    encoded = [step.new for step in read if phases[step.number] == ENCODER]
    steps = [step for step in read if phases[step.number] != ENCODER]
    starts = [at for at, step in enumerate(steps) if _begins(step, phases[step.number])]
    first = steps[: next(filter(None, starts), len(steps))]
    prefill = [step.new for step in first if phases[step.number] == "prefill"]
    decoded = len(first) - len(prefill)
    decoded += beyond if len(starts) < 2 else 0
    words = _words(prefill, decoded)
    if encoded:
        words = f"encoder over {encoded[0]}, {words}"
    batch = _batch(first)
    text = f"{batch}: {words}" if batch else words
    again = len(starts) - 1
    return text if again < 1 else f"{text}, and {again} more start{'' if again == 1 else 's'}"


_MANY = 4096
"""Steps that are looked at; what follows is counted as decode steps."""


def _begins(step: Step, phase: str) -> bool:
    """Whether a text begins: in an empty cache, or at its first place over rows left there."""
    places = [row[0] for row in step.positions if row]
    return step.parent is None or (phase == "prefill" and bool(places) and max(places) == 0)


def _words(prefill: Sequence[int], decoded: int) -> str:
    steps = f"{decoded} decode step{'' if decoded == 1 else 's'}" if decoded else ""
    start = f"prefill of {prefill[0]}" if prefill else ""
    if len(prefill) > 1:
        start = f"chunked prefill {'+'.join(map(str, _shortened(prefill)))}"
    return ", ".join(filter(None, (start, steps))) or "nothing"


def _shortened(sizes: Sequence[int]) -> list[object]:
    """Sizes of chunks; equal ones in a row are counted when there are many."""
    if len(sizes) <= _SHOWN:
        return list(sizes)
    out: list[object] = []
    for size, same in groupby(sizes):
        number = len(list(same))
        out += [f"{number}×{size}"] if number > 2 else [size] * number
    return out if len(out) <= _SHOWN else [*out[: _SHOWN - 1], "…"]


def _batch(steps: Sequence[Step]) -> str:
    """How many sequences, and which kind: "left-padded batch of 2"; empty for one."""
    rows = max((step.num_sequences for step in steps), default=1)
    if rows < 2:
        return ""
    if any(event.kind == "reorder" for step in steps for event in step.events):
        return f"{rows} beams"
    padded = any(place < 0 for step in steps for row in step.positions for place in row)
    return f"left-padded batch of {rows}" if padded else f"batch of {rows}"


def single(trace: Trace, since: int = 0) -> bool:
    """Whether the run is one text that only ever grew; few of its steps are read for that.

    Args:
        trace: The run.
        since: How many of its steps are known to be so.
    """
    table = trace.overview[max(since - 1, 0) :]
    if len(table) == 0:
        return True
    linear = (table["parent"][1:] == table["number"][:-1]).all()
    begins = since > 0 or table["parent"][0] < 0
    alone = (table["sequences"] <= 1).all() and (table["new"][1:] <= 1).all()
    if not (linear and begins and alone):
        return False
    # a step that goes on costs more than the one before it, unless a window is full
    doubtful = np.flatnonzero(np.diff(table["cached_flops"]) <= 0)
    return all(_goes_on(trace, *table["number"][at : at + 2].tolist()) for at in doubtful)


def _goes_on(trace: Trace, before: int, number: int) -> bool:
    """Whether a step begins where the one before it ended; also where that is not known."""
    try:
        old, new = trace.step(before), trace.step(number)
    except KvtraceError:
        return True
    if not (old.num_sequences and new.num_sequences and old.new and new.new):
        return True
    return new.positions[0][0] == old.positions[0][-1] + 1
