"""A text that goes on without its newest rows: nothing is compared wrongly, for nothing is left.

A step that begins a cache begins a text. Where it is told to begin at the very position at which
the step before it ended, it is no new text: the cache was dropped on the way. Tokens tell the same:
who feeds the one that the step before holds for the likeliest means to go on from there, not from
a cache that is empty or ends where that step began. Once may be chance, twice in a row is none,
and none it is in a run that feeds the likeliest token in each of its other steps: a position
that wraps to 0 looks like a text of that token alone. Unless texts begin with it anyway, as with
a token that ends them, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import HANDED_BACK, Step, Trace

_SURE = 3
"""Steps that were fed the likeliest token, and none another one: this is how the run goes on."""


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
    _once: Finding | None = None
    _tried: bool = False
    _greedy: int = 0
    _strayed: bool = False
    _starts: set[int] = field(default_factory=set)

    def add(self, step: Step, before: Step | None, *, looking: bool = True) -> Finding | None:
        """What the next step shows, of itself or of the step before.

        Args:
            step: Any.
            before: The one recorded before it; None: there is none.
            looking: Nothing else is wrong so far; else that tells more of where a text goes on.
        """
        maybe, self._maybe = self._maybe, None
        in_a_row, self._in_a_row = self._in_a_row, 0
        starts = set(self._starts)
        if step.parent is None:
            self._starts.update(row[0] for row in step.tokens if row)
        odd = before is None or step.packed is not None or not step.caches
        if before is None or odd or _reads_elsewhere(step, before) or self._is_summed_up(step):
            return None
        empty = not any(group.length_before for group in step.caches)
        if step.parent is None and empty and _told_to_go_on(step, before):
            where = f"was given position {step.positions[0][0]}, where step {before.number} ended"
            return self._finding(step, before, where)
        likeliest = _fed_the_likeliest(step, before, repeats=_ours(self.trace))
        begins = step.parent is None and empty
        if not begins or (likeliest and _alone_again(step, before, starts)):
            once = self._only_once(step, before, likeliest, looking)
            if once is not None:
                return once
        if self.named or not (begins or _cropped(step, before)):
            return None
        if step.new == 1:
            self._in_a_row = in_a_row + 1
            self.apart = max(self.apart, self._in_a_row)
        if not likeliest:
            return None
        self._maybe = self._finding(
            step, before, f"was fed the likeliest token after step {before.number}"
        )
        self.named = maybe is not None
        return maybe and replace(
            maybe, evidence=f"{maybe.evidence}; so it is in step {step.number}"
        )

    def _only_once(
        self, step: Step, before: Step, likeliest: bool, looking: bool
    ) -> Finding | None:
        """A step that alone goes back over the last row, once the rest of the run is known.

        Whoever takes the likeliest token in every step has no other answer to try: what goes back
        for one does not mean to. A step that is fed another token, or several, may. What goes back
        into a step of several tokens may drop those that were only tried: the whole run must be
        known.
        """
        again = step.tokens == tuple(row[-1:] for row in before.tokens)
        if step.new > 1 or not (likeliest or again) or not looking:
            self._strayed |= step.new == 1 or bool(self._greedy)
            self._once = None
            return None
        once = self._once
        if likeliest and not self.named and (step.parent is None or _goes_back(step, before)):
            where = f"was fed the likeliest token after step {before.number}"
            self._once = once or self._finding(step, before, where, once=True)
            self._tried = self._tried or before.new > 1
        else:
            self._greedy += likeliest
        if once is None or self._strayed or self.named or self._greedy < _SURE:
            return None
        if self._tried and step.number != self.trace.numbers[-1]:
            return None
        self.named = True
        return replace(
            once, evidence=f"{once.evidence}; every other step goes on after the likeliest too"
        )

    def _finding(self, step: Step, before: Step, where: str, *, once: bool = False) -> Finding:
        layer = step.caches[0].layers[0]
        site = next((one.index for one in self.trace.meta.sites if one.reads == layer), 0)
        at = (step.number, site, "k")
        if step.parent is not None and (once or not step.events):
            place = step.positions[0][0]
            ended = before.positions[0][-1] + 1
            evidence = (
                f"the step {where}, and goes on at position {place}, where that one ended before "
                f"{ended}: its row is written over one of that step's"
            )
            return Finding("ROW-OVERWRITTEN", *at, evidence, row=_begins_with(step, layer))
        left = _begins_with(step, layer)
        missing = max(row[-1] + 1 for row in before.positions if row) - left
        has = f"begins with only {left} rows" if left else "is empty"
        are = "row is" if missing == 1 else "rows are"
        evidence = f"the step {where}, but its cache {has}: {missing} {are} missing"
        return Finding("HISTORY-LOST", *at, evidence, row=0)

    def _is_summed_up(self, step: Step) -> bool:
        """Whether it is given what an earlier one summed up, and its cache is empty on purpose."""
        if step.parent is not None or self.trace.compared(step.number) is not None:
            return False
        return any(HANDED_BACK in note.text for note in self.trace.notes if note.kind == "note")


def _reads_elsewhere(step: Step, before: Step) -> bool:
    """Whether a step attends at other places than the one before, of whose rows nothing is known.

    As where a prompt is read in windows by one module, and the rest from a cache by another.
    """
    layers = (layer for group in step.caches for layer in group.layers)
    return all(before.cache_step(layer) is None for layer in layers)


def _told_to_go_on(step: Step, before: Step) -> bool:
    """Whether the step was given the positions that follow those of the step before."""
    ends = [row[-1] + 1 for row in before.positions if row]
    starts = [row[0] for row in step.positions if row]
    return bool(starts) and starts == ends and min(starts) >= 1


def _goes_back(step: Step, before: Step) -> bool:
    """Whether each sequence stands where the step before was, in place of that step's last row."""
    layer = step.caches[0].layers[0]
    here, wrote = step.cache_step(layer), before.cache_step(layer)
    if here is None or wrote is None or not _began_within(step, before):
        return False
    rows = max(wrote.rows, 1)
    last = {wrote.first_cell + (n + 1) * rows - 1 for n in range(before.num_sequences)}
    runs = [run for sequence in here.attended for run in sequence]
    return not any(run.cell <= cell < run.cell + run.count for run in runs for cell in last)


def _began_within(step: Step, before: Step) -> bool:
    """Whether each sequence begins at a position that the step before had, of which some are left.

    One that becomes several is held against itself.
    """
    if before.num_sequences not in (1, step.num_sequences):
        return False
    ends = before.positions * (step.num_sequences // before.num_sequences)
    pairs = [*zip(step.positions, ends, strict=True)]
    return bool(pairs) and all(row and last and 0 < row[0] <= last[-1] for row, last in pairs)


def _alone_again(step: Step, before: Step, starts: set[int]) -> bool:
    """Whether single tokens begin anew, from 0 and amid others, with what begins no text.

    After a prompt they may be meant to stand alone, to time them.
    """
    amid = before.parent is not None and before.new == 1
    zero = all(row and row[0] == 0 for row in step.positions)
    return amid and zero and starts.isdisjoint(row[0] for row in step.tokens)


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


def _ours(trace: Trace) -> bool:
    """Whether our own loop fed the tokens, which repeats no step."""
    return trace.meta.sampling.driver.startswith("kvtrace")


def _fed_the_likeliest(step: Step, before: Step, *, repeats: bool) -> bool:
    """Whether each sequence was fed the one token that the step before holds for the likeliest.

    Several that go on after one take as many of its likeliest tokens. The same token again tells
    nothing, unless `repeats` are none: a step may be repeated, to time it.
    """
    likeliest = [(one.ids[0],) if one.ids else () for one in before.top]
    if len(before.top) == 1 < step.num_sequences:
        likeliest = [(one,) for one in before.top[0].ids[: step.num_sequences]]
    again = not repeats and likeliest == [row[-1:] for row in before.tokens]
    return step.new == 1 and bool(likeliest) and list(step.tokens) == likeliest and not again
