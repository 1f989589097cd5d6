"""What a program set on a model between its texts: each is computed again with what it had then.

A scale, a window, a flag, a table. What a forward writes itself is the cache's, or counts its
tokens: that is never set again. Nor is what a program changes all the time within a text, as a
position or a phase that it counts for the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from msgspec import Struct
from torch import Tensor, nn

from kvtrace.record.capture.running import our_work
from kvtrace.record.lanes.as_it_was.attributes import (
    ABSENT,
    Glance,
    Holder,
    Kept,
    Place,
    has,
    holders,
    put,
)
from kvtrace.record.lanes.paths import Path
from kvtrace.trace import SET_WITHIN

_NAMED = 3
"""Attributes that a sentence names."""


class _Change(Struct, frozen=True):
    """An attribute that was another one before a step."""

    step: int
    place: Place
    was: Kept


class Settings:
    """Attributes that a program changed, told apart from those that a model changes itself."""

    def __init__(self, model: nn.Module) -> None:
        """As they are now: before the first forward."""
        with our_work(), torch.no_grad():
            self._holders = {(one.module, one.inside): one for one in holders(model)}
        self._glance = Glance(list(self._holders.values()))
        self._waiting: list[tuple[Place, Kept]] = []
        self._changes: list[_Change] = []
        self._own: set[Place] = set()
        self._counted: set[Place] = set()

    def begin(self) -> None:
        """A forward is about to run: what changed since the last one, a program changed."""
        for holder, written in self._written():
            changed = [(place, was) for place, was, other in written if other]
            # where memory is of another size, all was set up anew: its numbers go with it
            if not any(_anew(was, holder.contents.get(place.name)) for place, was in changed):
                self._waiting += changed

    def over(self) -> None:
        """It is over: what was written to meanwhile is the model's own."""
        found = self._written()
        for holder, written in found:
            for place, _, _ in written:
                self._own.add(place)
                holder.leave_out(place.name)
        if found:
            self._glance.refresh()

    def became(self, step: int) -> None:
        """The forward that began last became this step."""
        self._changes += [_Change(step, place, was) for place, was in self._waiting]
        self._waiting.clear()

    def _written(self) -> list[tuple[Holder, list[tuple[Place, Kept, bool]]]]:
        """What holds attributes that were written to since the last look, and these."""
        if self._glance.untouched:
            return []
        with our_work(), torch.no_grad():
            found = [(one, list(one.look())) for one in self._holders.values()]
        self._glance.refresh()
        return [(one, written) for one, written in found if written]

    # ------------------------------------------------------------- when lanes are computed

    def judge(self, roots: Iterable[int], end: int) -> None:
        """Which changes are settings; all that was made up to now is known after it.

        Args:
            roots: Steps with which texts began.
            end: The step that would come next.
        """
        self.begin()
        self.became(end)
        known = {*roots, end}
        within: dict[Place, list[int]] = {}
        for one in self._changes:
            if one.step not in known and not _is_fraction(one.was):
                within.setdefault(one.place, []).append(one.step)
        # one change in the middle of a text may be the user's; a phase begins behind the prompt
        self._counted = {
            place
            for place, steps in within.items()
            if len(steps) > 1 or any(step - 1 in known for step in steps)
        }

    @property
    def _set(self) -> list[_Change]:
        """Changes that a program made."""
        none = self._own | self._counted
        return [one for one in self._changes if one.place not in none]

    def text(self, path: Path) -> int:
        """Changes that were made before a text began: texts of one number had the same."""
        return sum(one.step <= path.root for one in self._set)

    def until(self, path: Path) -> int | None:
        """The first step of a path that ran with other attributes than its text began with."""
        first = min((one.step for one in self._set if one.step > path.root), default=None)
        steps = (node.step for node in (*path.shared, *path.nodes))
        return None if first is None else min((s for s in steps if s >= first), default=None)

    def of(self, paths: Sequence[Path]) -> Mapping[Place, Kept]:
        """What those that were ever changed were when a text began.

        Args:
            paths: Of texts with the same ones.
        """
        found: dict[Place, Kept] = {}
        changes = self._set
        for one in changes if paths else ():
            if one.step > paths[0].root:
                found.setdefault(one.place, one.was)
        for one in changes if paths else ():
            if one.place not in found:
                kept = self._holders[one.place[:2]].kept
                found[one.place] = kept.get(one.place.name, Kept(ABSENT))
        return found

    def says(self, paths: Sequence[Path]) -> Iterator[str]:
        """Sentences on what was set, and what came of it."""
        steps: dict[int, list[str]] = {}
        for one in self._set:
            steps.setdefault(one.step, []).append(f"`{one.place}`")
        ends = {self.until(path) for path in paths}
        for step, names in steps.items():
            more = len(names) - _NAMED
            named = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
            if step in ends:
                yield f"{named}: set before step {step}, within a text: {SET_WITHIN}"
            elif any(path.root >= step for path in paths):
                yield f"recomputed lane: each text with {named} as it was then: set at step {step}"


@contextmanager
def as_set(
    model: nn.Module, found: Mapping[Place, Kept], dtype: torch.dtype | None = None
) -> Iterator[None]:
    """A model with attributes that it had; it has its own again afterwards.

    Args:
        model: Live, or a copy; or of another one, which has none of those modules.
        found: They.
        dtype: Of floating tensors; None: as they were.
    """
    undo: list[tuple[Place, object]] = []
    try:
        for place, kept in found.items():
            if kept.known and has(model, place):
                value = kept.then
                wide = isinstance(value, Tensor) and value.is_floating_point()
                value = value.to(dtype) if isinstance(value, Tensor) and wide else value
                undo.append((place, put(model, place, value)))
        yield
    finally:
        for place, value in reversed(undo):
            put(model, place, value)


def _is_fraction(kept: Kept) -> bool:
    """Whether it is a number that no position and no phase is, or several."""
    value = kept.value
    if isinstance(value, dict):
        value = list(value.values())
    parts = list(value) if isinstance(value, (list, tuple, set)) else [value]
    return any(isinstance(part, float) for part in parts)


def _anew(was: Kept, now: object) -> bool:
    """Whether memory is another one, not only other numbers in it."""
    one = was.value
    if not isinstance(one, Tensor) or not isinstance(now, Tensor):
        return False
    return (one.shape, one.dtype, one.device) != (now.shape, now.dtype, now.device)
