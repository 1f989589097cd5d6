"""A text that goes on without its newest rows: nothing is compared wrongly, for nothing is left.

A step that begins a cache begins a text. Where it is told to begin at the very position at which
the step before it ended, it is no new text: the cache was dropped on the way. Tokens tell the same:
who feeds the one that the step before holds for the likeliest means to go on from there, not from
a cache that is empty or ends where that step began. Once may be chance, twice in a row is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace


@dataclass(slots=True)
class Forgotten:
    """Looks for steps that go on where the one before ended, without its rows.

    Attributes:
        trace: Whose steps.
        apart: The longest row of steps, of one token each, that all lack the row of the one before.
        named: A finding says so already.
    """

    trace: Trace
    apart: int = 0
    named: bool = False
    _in_a_row: int = 0
    _maybe: Finding | None = None

    def add(self, step: Step, before: Step | None) -> Finding | None:
        """What the next step shows, of itself or of the step before.

        Args:
            step: Any.
            before: The one recorded before it; None: there is none.
        """
        maybe, self._maybe = self._maybe, None
        in_a_row, self._in_a_row = self._in_a_row, 0
        if before is None or step.packed is not None or not step.caches:
            return None
        empty = not any(group.length_before for group in step.caches)
        if step.parent is None and empty and _told_to_go_on(step, before):
            where = f"was given position {step.positions[0][0]}, where step {before.number} ended"
            return self._finding(step, before, where)
        if self.named or not (_cropped(step, before) or (step.parent is None and empty)):
            return None
        if step.new == 1:
            self._in_a_row = in_a_row + 1
            self.apart = max(self.apart, self._in_a_row)
        if not _fed_the_likeliest(step, before):
            return None
        self._maybe = self._finding(
            step, before, f"was fed the likeliest token after step {before.number}"
        )
        self.named = maybe is not None
        return maybe and replace(
            maybe, evidence=f"{maybe.evidence}; so it is in step {step.number}"
        )

    def _finding(self, step: Step, before: Step, where: str) -> Finding:
        layer = step.caches[0].layers[0]
        site = next((one.index for one in self.trace.meta.sites if one.reads == layer), 0)
        at = (step.number, site, "k")
        if step.parent is not None and not step.events:
            place = step.positions[0][0]
            evidence = (
                f"the step {where}, and goes on at position {place} as that step did: its row is "
                "written over that one's"
            )
            return Finding("ROW-OVERWRITTEN", *at, evidence, row=0)
        left = _begins_with(step, layer)
        missing = max(row[-1] + 1 for row in before.positions if row) - left
        has = f"begins with only {left} rows" if left else "is empty"
        are = "row is" if missing == 1 else "rows are"
        evidence = f"the step {where}, but its cache {has}: {missing} {are} missing"
        return Finding("HISTORY-LOST", *at, evidence, row=0)


def _told_to_go_on(step: Step, before: Step) -> bool:
    """Whether the step was given the positions that follow those of the step before."""
    ends = [row[-1] + 1 for row in before.positions if row]
    starts = [row[0] for row in step.positions if row]
    return bool(starts) and starts == ends and min(starts) >= 1


def _cropped(step: Step, before: Step) -> bool:
    """Whether every row of the step before was dropped again, and nothing else happened.

    A buffer is not cropped, but written over: by a step at a position that the one before had.
    """
    layers = [layer for group in step.caches for layer in group.layers]
    only = all(one.kind == "crop" for one in step.events) if step.events else _over(step, before)
    return only and all(_begins_with(step, one) and _dropped(step, before, one) for one in layers)


def _over(step: Step, before: Step) -> bool:
    """Whether each sequence of a step goes on at a position that the step before had."""
    pairs = [*zip(step.positions, before.positions, strict=False)]
    return bool(pairs) and all(row and last and row[0] <= last[-1] for row, last in pairs)


def _dropped(step: Step, before: Step, layer: int) -> bool:
    """Whether a step attends to no row that the step before wrote to a layer."""
    here, wrote = step.cache_step(layer), before.cache_step(layer)
    if here is None or wrote is None:
        return False
    cells = range(wrote.first_cell, wrote.first_cell + wrote.rows * before.num_sequences)
    runs = (run for sequence in here.attended for run in sequence)
    return not any(run.cell < cells.stop and cells.start < run.cell + run.count for run in runs)


def _begins_with(step: Step, layer: int) -> int:
    """Rows that a cache layer holds when a step begins."""
    for event in reversed(step.events):
        if layer in event.layers:
            return event.lengths_after[event.layers.index(layer)]
    group = step.cache_step(layer)
    return 0 if group is None else group.length_before


def _fed_the_likeliest(step: Step, before: Step) -> bool:
    """Whether each sequence was fed the one token that the step before holds for the likeliest.

    The same token again tells nothing: a step may be repeated, to time it.
    """
    likeliest = [(one.ids[0],) if one.ids else () for one in before.top]
    again = [row[-1:] for row in before.tokens]
    return step.new == 1 and bool(likeliest) and list(step.tokens) == likeliest != again
