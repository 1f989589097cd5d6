"""Whether a cache dropped rows by a rule of its own, all heads alike: no slip of places does so.

Caches with a budget (H2O, SnapKV, TOVA, attention sinks) part from a model that keeps all on
purpose. What they drop over a whole run tells them from a bug: here and there in a text, back and
forth, something else in each layer, or all but the first and the newest rows from a length on. A
row lost once, the oldest, every second one, a stretch or a block are what slips look like.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from math import gcd
from operator import itemgetter

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.trace import Run, Step, Tensor, Trace
from kvtrace.trace.cells import rows_of

_OFTEN = 3
"""Drops, layers or places that it takes until no simple order is left by chance."""

_NAMED = 4


class _Drop(Struct, frozen=True):
    """Rows that a cache layer let go of around one step.

    Attributes:
        step: Which.
        gone: Their places, ascending.
        before: How many older rows it then still held in front of the first of them.
        left: How many rows it holds after it.
        new: Rows that came in the step.
    """

    step: int
    gone: tuple[int, ...]
    before: int
    left: int
    new: int

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """Of each stretch of neighbours: the first, and how many."""
        ends = [i for i in range(1, len(self.gone)) if self.gone[i] != self.gone[i - 1] + 1]
        bounds = pairwise([0, *ends, len(self.gone)])
        return [(self.gone[first], end - first) for first, end in bounds]

    @property
    def scattered(self) -> bool:
        """Whether the places follow no simple order: no stretch, no stride, no blocks."""
        stretches = self.stretches
        if len(self.gone) < _OFTEN or len(stretches) < 2:
            return False
        blocks = gcd(*(number for one in stretches for number in one)) > 1
        return not blocks and len(set(np.diff(self.gone))) > 1


def chosen(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """Rows that were dropped too soon, by another name where a rule of the cache chose them.

    Args:
        trace: Whose finding.
        found: Rows that are not there, in all heads.
        lane: The reference.
        limits: What is rounding.
    """
    sequence = found.sequences[0] if found.sequences else 0
    drops = _drops(trace, sequence)
    mine = drops.get(trace.site(found.layer).reads)
    if not mine:
        return None
    how = _no_order(drops) or _first_and_newest(trace, found, sequence, mine, lane, limits)
    if not how:
        return None
    return replace(found, name="EVICTED-BY-CHOICE", evidence=f"{found.evidence}; {how}")


def _drops(trace: Trace, sequence: int) -> dict[int, list[_Drop]]:
    """What each cache layer let go of, step by step; nothing where sequences change places."""
    drops, kept = defaultdict[int, list[_Drop]](list), dict[tuple[int, int], set[int]]()
    twins = _twins(trace, sequence)
    for step in trace:
        if step.order or sequence >= step.num_sequences:
            return {}
        for store, had, now in _held(step, sequence, kept, twins):
            kept[step.number, store] = now
            # what is behind the new rows was taken back
            gone = sorted(place for place in had - now if place <= max(step.positions[sequence]))
            if gone and not step.events:
                before = len([place for place in now if place < gone[0]])
                drop = _Drop(step.number, tuple(gone), before, len(now), step.new)
                drops[store].append(drop)
    return drops


def _held(
    step: Step,
    sequence: int,
    kept: dict[tuple[int, int], set[int]],
    twins: dict[int, dict[int, int]],
) -> Iterator[tuple[int, set[int], set[int]]]:
    """Each cache layer of a step, the places it held or was given, and those it holds after it."""
    for group in step.caches:
        if sequence >= len(group.kept):
            continue
        given, now = _places(group.attended[sequence]), _places(group.kept[sequence])
        new = set(step.positions[sequence])
        for store in group.layers:
            older = set() if step.parent is None else kept.get((step.parent, store), set())
            there, same = (older | new) if older else (given | now), twins.get(store, {})
            yield store, older | _newest(given, there, same), _newest(now, there, same)


def _twins(trace: Trace, sequence: int) -> dict[int, dict[int, int]]:
    """By cache layer, the first place whose row is the very same, of each place that is not it.

    So are those of equal tokens where nothing tells rows their places.
    """
    cells = defaultdict[int, dict[int, int]](dict)
    for step in trace:
        for group in step.caches:
            if sequence < len(group.kept):
                runs = *group.attended[sequence], *group.kept[sequence]
                found = {
                    run.position + row: run.cell + row
                    for run in runs
                    if run.position >= 0
                    for row in range(run.count)
                }
                for store in group.layers:
                    cells[store] |= found
    found_twins = dict[int, dict[int, int]]()
    for site in trace.meta.sites:
        if site.reads in cells and site.reads not in found_twins:
            found_twins[site.reads] = _equal_rows(trace, site.index, cells[site.reads])
    return found_twins


def _equal_rows(trace: Trace, layer: int, cells: dict[int, int]) -> dict[int, int]:
    """Of each place whose row stands at an earlier one too, the first of those."""
    runs = tuple(Run(cell, 1, slot, place) for slot, (place, cell) in enumerate(cells.items()))
    store = trace.cache_layer(layer)
    keys, values = (
        rows_of(trace.source, store, tensor, runs, None).swapaxes(0, 1)
        for tensor in (Tensor.KEYS, Tensor.VALUES)
    )
    first, twins = dict[bytes, int](), dict[int, int]()
    for row, place in sorted(enumerate(cells), key=itemgetter(1)):
        same = first.setdefault(keys[row].tobytes() + values[row].tobytes(), place)
        if same != place:
            twins[place] = same
    return twins


def _newest(held: set[int], there: set[int], twins: dict[int, int]) -> set[int]:
    """Places that are held, where any of equal rows may be meant: the newest of those there."""
    if not twins:
        return held
    alike = defaultdict[int, list[int]](list)
    for place in sorted(there | held):
        alike[twins.get(place, place)].append(place)
    counts = Counter(twins.get(place, place) for place in held)
    return {place for same, number in counts.items() for place in alike[same][-number:]}


def _places(runs: tuple[Run, ...]) -> set[int]:
    """Those of rows that are no padding."""
    return {run.position + row for run in runs if run.position >= 0 for row in range(run.count)}


def _no_order(drops: dict[int, list[_Drop]]) -> str:
    """What shows that no place told which rows were dropped; empty: nothing does."""
    by_step = defaultdict[int, list[_Drop]](list)
    for store, here in drops.items():
        for one in here:
            if one.scattered:
                return f"in step {one.step} cache layer {store} chooses {_list(one.gone)} to drop"
            by_step[one.step].append(one)
        single = [one.gone[0] for one in here if len(one.gone) == 1]
        if _back_and_forth(single):
            return f"cache layer {store} chooses {_list(single)} to drop, one after another"
    for number, here in by_step.items():
        if len({one.left for one in here}) == 1 and _layers_differ(here):
            told = "; ".join(_list(one.gone) for one in here[:_OFTEN])
            return f"in step {number} each layer chooses others to drop: {told}"
    return ""


def _layers_differ(here: list[_Drop]) -> bool:
    """Whether layers that keep as many rows drop others, in no order of layers."""
    if len({one.gone for one in here}) < _OFTEN:
        return False
    single = all(len(one.gone) == 1 for one in here)
    if single:
        return _back_and_forth([one.gone[0] for one in here])
    return sum(len(one.stretches) > 1 for one in here) > 1


def _back_and_forth(places: list[int]) -> bool:
    """Whether places neither rise nor fall throughout."""
    return len(places) >= _OFTEN and places not in (sorted(places), sorted(places)[::-1])


def _first_and_newest(
    trace: Trace, found: Finding, sequence: int, drops: list[_Drop], lane: str, limits: Noise
) -> str:
    """What shows that a cache keeps the first and the newest rows, of a model that sees all.

    Of as many rows at every length, behind a time in which it grew, or a longer prompt.
    """
    first, left = drops[0].before, drops[-1].left
    steady = all((one.before, one.left) == (first, left) for one in drops[1:])
    roomy = len(drops[0].gone) > 1 or drops[0].step > trace.numbers[0] + 1
    if not first or not steady or not roomy or len(drops) < _OFTEN:
        return ""
    last = drops[-1].step
    scene = stage(trace, last, found.layer, sequence, limits.tolerance(found.layer), lane)
    if scene is None or len(scene.wanted) <= int(scene.places.max()) - scene.padding:
        return ""
    rest = left - first
    return f"at every length it keeps the first {first} rows and the newest {rest}"


def _list(places: tuple[int, ...] | list[int]) -> str:
    """The first of some places, as text."""
    return ", ".join(map(str, places[:_NAMED])) + (" …" if len(places) > _NAMED else "")
