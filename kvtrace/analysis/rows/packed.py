"""Requests in a continuous batch: which one a step is about, and where its rows lie."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace import units
from kvtrace.errors import MissingError
from kvtrace.text import safe
from kvtrace.trace import Step, Trace
from kvtrace.trace.view import pool_slots

_NAME = 40
"""Characters of a request's name that are shown."""


def request_name(step: Step) -> str:
    """What the engine calls the request of a step, safe to print; empty: there is none."""
    return "" if step.packed is None else safe(step.packed.request, _NAME)


def part_text(step: Step) -> str:
    """What a step is a part of: "request a, 2 of 3 in forward 7 of the engine, which took …"."""
    part = step.packed
    if part is None:
        return ""
    alone = "alone" if part.of == 1 else f"{part.place + 1} of {part.of}"
    text = f"request {request_name(step)}, {alone} in forward {part.forward} of the engine"
    if part.of == 1 or not part.elapsed_ns:
        return text
    return f"{text}, which took {units.duration(part.elapsed_ns)}; the step's time is its share"


def pool_text(trace: Trace, number: int, layer: int, row: int, sequence: int = 0) -> str:
    """Where an attended row lies in a pool of blocks: "block 3 slot 1"; empty: there is no pool.

    Raises:
        MissingError: The site did not attend in this step.
    """
    group, block = trace.cache_step(number, layer).pool, trace.cache_layer(layer).block_slots
    if sequence >= len(group) or not block:
        return ""
    slots = pool_slots(group[sequence])
    if not 0 <= row < len(slots):
        raise MissingError(f"{trace.name}: step {number}, layer {layer}: there is no row {row}.")
    slot = int(slots[row])
    return "in no block" if slot < 0 else f"block {slot // block} slot {slot % block}"


def requests_text(steps: Sequence[Step]) -> str:
    """How many requests in how many forwards; empty where nothing was batched continuously."""
    parts = [step.packed for step in steps if step.packed is not None]
    if not parts:
        return ""
    requests = len({part.request for part in parts})
    forwards = len({part.forward for part in parts})
    few = f"{requests} request{'' if requests == 1 else 's'}"
    return f"continuous batching: {few} in {forwards} forward{'' if forwards == 1 else 's'}"
