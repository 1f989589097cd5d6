"""The whole question: are the lanes equal, and if not, where do they part and why?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.classes import KINDS
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.noise import Noise, largest, noise
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding, Report
from kvtrace.analysis.checks.stage import stage
from kvtrace.trace import Step, Tensor, Trace

LETTERS = {Tensor.QUERIES: "q", Tensor.KEYS: "k", Tensor.VALUES: "v", Tensor.OUTPUT: "output"}
_STEPS_SEARCHED = 64


def check(trace: Trace, lane: str = "recomputed") -> Report:
    """Compare the cached lane with another one.

    Raises:
        TraceError: Rows that are needed are damaged.
    """
    if trace.meta.lane(lane) is None:
        return Report(UNCHECKED, reason=f"{trace.name} has no {lane} lane to compare with")
    limits = noise(trace, lane)
    top = np.full((len(trace.meta.sites), 4), np.nan)
    steps, flips = 0, []
    for number in trace.numbers:
        compared = trace.compared(number, lane)
        if compared is None:
            continue
        steps += 1
        top = np.fmax(top, largest(compared, len(top)))
        flips += [(number, one.margin) for one in compared.logits if one.best != one.lane_best]
    if not steps:
        return Report(UNCHECKED, reason=f"no step of {trace.name} was compared with another lane")
    found = tuple(findings(trace, lane, limits))
    bugs = any(one.kind.bug for one in found)
    return Report(
        DIVERGED if bugs else EQUAL,
        found,
        limits.reason,
        tuple((LETTERS[t], float(np.nanmax(top[:, t], initial=0.0))) for t in Tensor),
        tuple(flips),
        steps,
    )


def findings(trace: Trace, lane: str, limits: Noise) -> Iterator[Finding]:
    """Findings as they are met, in causal order: step, then layer, then tensor."""
    yield from _said_by_the_recorder(trace)
    explained: set[int] = set()
    searched = 0
    for number in trace.numbers:
        step = trace.step(number)
        place = _first_site(trace, step, lane, limits)
        if place is None:
            continue
        rest = [n for n in range(step.num_sequences) if n not in explained]
        here = list(_at(trace, step, place, rest, lane, limits))
        yield from here
        explained |= {n for one in here for n in one.sequences or range(step.num_sequences)}
        searched += 1
        if explained >= set(range(step.num_sequences)) or searched >= _STEPS_SEARCHED:
            break
    yield from _not_used(trace)


def _said_by_the_recorder(trace: Trace) -> Iterator[Finding]:
    """Findings written while the lanes were compared, such as shapes that differ.

    People note findings of their own, in their own words: those name no kind of divergence.
    """
    for note in trace.notes:
        name, _, evidence = note.text.partition(": ")
        if note.kind == "finding" and name in KINDS:
            yield Finding(name, note.step or 0, note.site or 0, "k", evidence, head=note.head)


def _first_site(trace: Trace, step: Step, lane: str, limits: Noise) -> int | None:
    """The first site of a step that differs by more than rounding."""
    compared = trace.compared(step.number, lane)
    if compared is None:
        return None
    top = largest(compared, len(limits.threshold))
    over: NDArray[np.bool_] = np.any(top > limits.threshold, axis=1)
    for group in step.sites:
        for site, bad in zip(group.sites, group.nonfinite, strict=True):
            over[site] = bool(over[site]) or bool(bad)
    return int(np.flatnonzero(over)[0]) if over.any() else None


def _at(
    trace: Trace, step: Step, layer: int, sequences: list[int], lane: str, limits: Noise
) -> Iterator[Finding]:
    """What is wrong at one site, sequences that show the same together."""
    tolerance = float(limits.threshold[layer].max())
    groups: dict[str, list[Finding]] = {}
    for sequence in sequences:
        scene = stage(trace, step.number, layer, sequence, tolerance, lane)
        one = None if scene is None else diagnose(scene)
        if one is not None:
            groups.setdefault(one.name, []).append(replace(one, sequences=(sequence,)))
    if not groups:
        unknown = _unexplained(trace, step, layer, lane, limits)
        if unknown is not None:
            yield unknown
    for same in groups.values():
        rows = tuple(sorted(n for one in same for n in one.sequences))
        everyone = len(rows) == step.num_sequences
        yield replace(same[0], sequences=() if everyone else rows)


def _unexplained(trace: Trace, step: Step, layer: int, lane: str, limits: Noise) -> Finding | None:
    """The difference itself, where no signature speaks."""
    compared = trace.compared(step.number, lane)
    if compared is None:
        return None
    relative: NDArray[np.float64] = np.asarray(compared.relative[layer], np.float64)
    over = np.argwhere(relative > limits.threshold[layer][:, None])
    if not len(over):
        return None
    tensor, head = (int(n) for n in over[0])
    evidence = f"{LETTERS[Tensor(tensor)]} is off by {relative[tensor, head]:.2g} of its largest"
    return Finding("UNKNOWN", step.number, layer, LETTERS[Tensor(tensor)], evidence, head=head)


def _not_used(trace: Trace) -> Iterator[Finding]:
    """Steps that process every token again although there is a cache."""
    if not any(layer.held for layer in trace.meta.cache_layers):
        return
    again = 0
    before: tuple[int, ...] = ()
    for number in trace.numbers:
        tokens = trace.step(number).tokens[0]
        again += bool(before) and len(tokens) > len(before) > 1 and tokens[: len(before)] == before
        before = tokens
    if again > 1 and again == len(trace) - 1:
        evidence = f"{again} steps fed all tokens again, the last one {len(before)}"
        yield Finding("CACHE-NOT-USED", int(trace.numbers[1]), 0, "k", evidence)
