"""What a step did to the rows that each site reads: appended, evicted, rewritten, kept."""

from __future__ import annotations

from msgspec import Struct

from kvtrace import units
from kvtrace.analysis.rows.origin import evicted_cells
from kvtrace.trace import CacheEvent, CacheStep, Run, Trace

_ANEW = {
    "derived": "made anew from cached ones",
    "uncached": "computed anew: no KV cache",
}
"""What is said of rows that no cache holds, by kind of cache layer."""


class LayerChange(Struct, frozen=True):
    """One cache layer in one step, per sequence.

    Attributes:
        cache_layer: Index into `Meta.cache_layers`.
        kind: Of the cache layer.
        held: Whether its rows occupy cache memory.
        appended: Rows this step added.
        rewritten: Older rows that were replaced in place.
        attended: Rows the attention was given, the new ones among them.
        read: Rows attended to that earlier steps had written.
        evicted: Rows no longer held afterwards, the most of any sequence: attended to once more,
            or gone before, as where a ring writes over its oldest row.
        length_before, length_after: Rows held around the step.
    """

    cache_layer: int
    kind: str
    held: bool
    appended: int
    rewritten: int
    attended: int
    read: int
    evicted: int
    length_before: int
    length_after: int

    @property
    def text(self) -> str:
        """In words: `+1 row, 13 → 14`."""
        if not self.held:
            return f"{_rows(self.attended)}, {_ANEW.get(self.kind, 'not cached')}"
        if self.appended and not (self.length_before or self.length_after):
            return f"{_rows(self.attended)}, none kept"
        words = []
        if self.appended:
            words.append(f"+{_rows(self.appended)}")
        if self.rewritten:
            words.append(f"{_rows(self.rewritten)} rewritten")
        if self.evicted:
            words.append(f"{_rows(self.evicted)} evicted")
        if words or self.length_before != self.length_after:
            words.append(f"{self.length_before} → {self.length_after}")
        else:
            words.append(f"{_rows(self.length_after)}, unchanged")
        return ", ".join(words)


def changes(trace: Trace, number: int) -> tuple[LayerChange, ...]:
    """What a step did to every cache layer it touched, in the order of the cache layers.

    Raises:
        MissingError: There is no such step.
    """
    found: list[LayerChange] = []
    for group in trace.step(number).caches:
        counts = _counts(group)  # once for all layers that were given the same rows
        found += [_change(trace, layer, group, counts) for layer in group.layers]
    return tuple(sorted(found, key=lambda one: one.cache_layer))


def change(trace: Trace, cache_layer: int, group: CacheStep) -> LayerChange:
    """What a group's step did to one of its cache layers."""
    return _change(trace, cache_layer, group, _counts(group))


def _counts(group: CacheStep) -> tuple[int, int, int]:
    """Rows attended to, read, and attended to for the last time, the most of any sequence."""
    attended = [row_count(runs) for runs in group.attended]
    own = group.first_cell, group.first_cell + group.rows * len(group.attended)
    read = [row_count(runs) - _inside(runs, *own) for runs in group.attended]
    lost = [evicted_cells(group, sequence).size for sequence in range(len(group.attended))]
    return max(attended, default=0), max(read, default=0), max(lost, default=0)


def _change(
    trace: Trace, cache_layer: int, group: CacheStep, counts: tuple[int, int, int]
) -> LayerChange:
    layer = trace.meta.cache_layers[cache_layer]
    attended, read, lost = counts
    appended = group.rows - group.rewritten
    gone = group.length_before + appended - group.length_after
    return LayerChange(
        cache_layer=cache_layer,
        kind=layer.kind,
        held=layer.held,
        appended=appended,
        rewritten=group.rewritten,
        attended=attended,
        # rows that come out as they did before are no rows that were kept
        read=read if layer.held and group.length_before else 0,
        evicted=max(lost, gone) if layer.held else 0,
        length_before=group.length_before,
        length_after=group.length_after,
    )


def row_count(runs: tuple[Run, ...]) -> int:
    """Rows in some runs."""
    return sum(run.count for run in runs)


def event_text(event: CacheEvent) -> str:
    """A change between steps in words: `crop: 20 → 17 rows`."""
    if event.kind in ("reorder", "select", "repeat") and event.order:
        took = ", ".join(f"{new}←{old}" for new, old in enumerate(event.order))
        return f"{event.kind}: sequences {took}"
    before, after = _span(event.lengths_before), _span(event.lengths_after)
    if event.lengths_before == event.lengths_after:
        return f"{event.kind}: {after} rows before and after"
    return f"{event.kind}: {before} → {after} rows"


def _span(lengths: tuple[int, ...]) -> str:
    if not lengths:
        return "0"
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low}–{high}"


def _inside(runs: tuple[Run, ...], start: int, stop: int) -> int:
    """Rows of some runs whose cells are in [start, stop)."""
    return sum(max(min(run.cell + run.count, stop) - max(run.cell, start), 0) for run in runs)


def _rows(count: int) -> str:
    return units.counted(count, "row")
