"""Everything a trace says, as plain values: what `--json` prints.

Names are those of the API; nothing is rounded. Token texts are raw (JSON escapes them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from kvtrace.analysis.cost.costs import Logits, step_cost, why
from kvtrace.analysis.cost.history import history, so_far
from kvtrace.analysis.cost.memory import cache_memory
from kvtrace.analysis.lanes.parting import Place as Parting
from kvtrace.analysis.lanes.parting import first_parting, largest_difference, worst
from kvtrace.analysis.summary import summary
from kvtrace.cli.show.plain import SCHEMA, Plain, plain
from kvtrace.errors import KvtraceError
from kvtrace.trace import Step, Trace
from kvtrace.version import __version__


def whole(trace: Trace, numbers: Iterable[int]) -> dict[str, Plain]:
    """The run, and the steps of the given numbers; what can't be read says so in its place."""
    shown = list(numbers)
    steps: list[Plain] = [step_facts(trace, number) for number in shown]
    lanes = {
        lane.name: readable(partial(_lane, trace, lane.name, shown)) for lane in trace.meta.lanes
    }
    total = readable(lambda: plain(so_far(history(trace), shown[-1]))) if shown else None
    return {
        "schema": SCHEMA,
        "kvtrace": __version__,
        "name": trace.name,
        "complete": trace.is_whole,
        "ending": plain(trace.ending),
        "damage": plain(trace.damage),
        "missing": plain(trace.missing),
        "notes": plain(trace.notes),
        "meta": plain(trace.meta),
        "num_steps": len(trace),
        "so_far": total,
        "lanes": lanes,
        "steps": steps,
    }


def readable(tell: Callable[[], Plain]) -> Plain:
    """What is told, or why it can't be read."""
    try:
        return tell()
    except KvtraceError as error:
        return {"unreadable": str(error)}


def _lane(trace: Trace, name: str, numbers: list[int]) -> Plain:
    """Where a lane parts from the cached one first, and most; null: nowhere."""
    return {
        "first_parting": _parting(first_parting(trace, name, numbers)),
        "largest_difference": _parting(largest_difference(trace, name, numbers)),
    }


def _parting(found: Parting | None) -> Plain:
    facts = plain(found)
    return {**facts, "text": found.text} if found and isinstance(facts, dict) else facts


def step_facts(trace: Trace, number: int) -> Plain:
    """One step; what can't be read says so instead of its values."""
    told = readable(partial(_step, trace, number))
    return {"number": number, **told} if isinstance(told, dict) else told


def _step(trace: Trace, number: int) -> dict[str, Plain]:
    step = trace.step(number)
    return {
        "sentence": summary(trace, number).sentence,
        "recorded": _recorded(step),
        "text": [[trace.token_text(token) for token in row] for row in step.tokens],
        "chosen": [_chosen(trace, number, row) for row in range(step.num_sequences)],
        "sequences": [_sequence(trace, number, row) for row in range(step.num_sequences)],
        "cost": _cost(trace, number),
        "memory": plain(cache_memory(trace, number)),
        "compared": {
            lane.name: readable(partial(_compared, trace, number, lane.name))
            for lane in trace.meta.lanes
        },
    }


def _recorded(step: Step) -> Plain:
    """The step as recorded; the token texts are given in place."""
    facts = plain(step)
    if isinstance(facts, dict):
        facts.pop("texts", None)
    return facts


def _chosen(trace: Trace, number: int, sequence: int) -> Plain:
    token = trace.chosen(number, sequence)
    return None if token is None else {"token": token, "text": trace.token_text(token)}


def _sequence(trace: Trace, number: int, sequence: int) -> Plain:
    told = summary(trace, number, sequence)
    return {
        "extent": plain(told.extent),
        "layers": plain(told.layers),
        "events": plain(told.events),
        "candidates": plain(told.candidates),
    }


def _cost(trace: Trace, number: int) -> Plain:
    """By every convention of counting the logits."""
    costs: dict[str, Plain] = {}
    for logits in Logits:
        cost = step_cost(trace, number, logits)
        ratios = {"flops_ratio": plain(cost.flops_ratio), "time_ratio": plain(cost.time_ratio)}
        told = plain(cost)
        costs[str(logits)] = {**told, **ratios} if isinstance(told, dict) else told
    costs["why"] = why(step_cost(trace, number))
    return costs


def _compared(trace: Trace, number: int, lane: str) -> Plain:
    compared = trace.compared(number, lane)
    if compared is None:
        return None
    facts = plain(compared)
    more = {"relative": plain(compared.relative), "verdict": plain(worst(trace, number, lane))}
    return {**facts, **more} if isinstance(facts, dict) else facts
