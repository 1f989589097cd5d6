"""Forwards of which only products and softmaxes are heard, and read when they are over.

A step that goes the same routes as the one before need not be followed function by function: what
was multiplied, and what the softmax was given, says the same. It is kept while the forward runs,
and held against the routes of all sites together when it is over. The first product that is none
of those expected ends it: what was heard so far is read at once, and the rest is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from msgspec import Struct

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.calls.call import aside
from kvtrace.record.flow.calls.listen import Listening
from kvtrace.record.flow.calls.parts import Note, Part, intact, nbytes_of, told
from kvtrace.record.flow.calls.reading import read
from kvtrace.record.flow.modes.modules import Frame
from kvtrace.record.flow.modes.route import Route
from kvtrace.record.flow.modes.routed import RoutedMode
from kvtrace.record.flow.plans.arrange import Sizes
from kvtrace.record.modes import unseen_by_modes

SDPA = "scaled_dot_product_attention"
ROOM = 1 << 28
"""Bytes of tensors that may be kept until a forward is over."""
TRIES = 4
"""Forwards of a module that are held against what was heard of them, before no more are."""


class Score(Struct, frozen=True):
    """What will be heard of a forward like the one before.

    Attributes:
        parts: Its attention calls.
        steps: Function and path of the module of each note.
        sizes: Of the step.
    """

    parts: tuple[Part, ...]
    steps: tuple[tuple[object, str], ...]
    sizes: Sizes


class Late(Struct, frozen=True):
    """Takes the calls of a forward when it is over.

    Attributes:
        ready: Whether nobody needs to be told of them while it runs.
        take: Given all of them.
        alone: Whether no cache was updated so far in the forward that runs.
    """

    ready: Callable[[], bool]
    take: Callable[[Sequence[AttentionCall]], None]
    alone: Callable[[], bool] = lambda: True


@dataclass(slots=True)
class Hearing:
    """Hears forwards whose score is known.

    Attributes:
        listening: Knows which module runs.
        mode: Follows what is not heard; knows the routes.
        late: Who is told of a forward that is over; None: nobody waits until then.
        follows: A forward runs of which nothing but its score is heard.
        notes: What was heard of the forward that runs.
    """

    listening: Listening
    mode: RoutedMode
    late: Late | None = None
    follows: bool = False
    notes: list[Note] = field(default_factory=list)
    learns: bool = False
    _score: Score | None = None
    _calls: list[int] = field(default_factory=list)
    _heard: int = 0
    _scores: dict[str, Score] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)

    def begin(self, frame: Frame, *, awake: bool = False) -> None:
        """A forward begins.

        Args:
            frame: Its.
            awake: It is followed all along, and may at most teach its score.
        """
        self._forget()
        if self.late is None or not frame.outermost:
            return
        score = self._scores.get(frame.path)
        if score is not None and score.sizes == self.listening.sizes:
            if not awake and self.late.ready():
                self._score, self.follows = score, True
        elif self._tries.get(frame.path, 0) < TRIES:
            self.learns, self.listening.outlet.told = True, []

    def expects(self, function: object) -> bool:
        """Whether a function that is about to run, in the innermost module, is the next one."""
        score, at = self._score, len(self.notes)
        if score is None or at >= len(score.steps):
            return False
        expected, path = score.steps[at]
        return expected is function and self.listening.forwards.stack[-1].path == path

    def note(self, function: object, args: Any, named: Any, out: Any) -> None:
        """A function has run."""
        stack, notes = self.listening.forwards.stack, self.notes
        if self.learns and notes and notes[-1].out is out:
            return  # a mode has called it again
        path = stack[-1].path if stack else ""
        with unseen_by_modes():
            notes.append(Note(path, function, args, named, out, told(args, out)))
        if self.learns:
            self._calls.append(len(self.listening.outlet.told or ()))

    def leave(self) -> None:
        """Something else runs than was expected: read what was heard, the rest is followed."""
        stack = self.listening.forwards.stack
        if self.follows and stack:
            with self.listening.harmless():
                self._read(stack[0])
            self._scores.pop(stack[0].path, None)
        self._forget()

    def over(self, frame: Frame) -> None:
        """The forward is over, and nothing went wrong in it."""
        with self.listening.harmless():
            if self.follows:
                self._read(frame)
            elif self.learns:
                self._learn(frame)
        self._forget()

    def stop(self) -> None:
        """A forward is over, whatever became of it; nothing of it is kept."""
        self._forget()

    def _forget(self) -> None:
        self.follows = self.learns = False
        self.notes, self._score, self.listening.outlet.told = [], None, None
        self._calls = []

    # -- reading -----------------------------------------------------------------------------

    def _read(self, frame: Frame) -> None:
        """Tell of all calls that were heard."""
        score, late, self.follows = self._score, self.late, False  # what runs now is ours
        if score is None or late is None:
            return
        both = [(part, part.among(self.notes)) for part in score.parts]
        heard = [(part, notes) for part, notes in both if len(notes) == len(part.places)]
        self._heard += 1
        calls, alike = read(heard, self.listening, self._heard)
        if not alike or not late.ready():
            self._scores.pop(frame.path, None)
        frame.attended += len(calls)
        self.listening.outlet.count(calls)
        if calls:
            with aside(calls[0].output):
                late.take(calls)

    # -- learning ----------------------------------------------------------------------------

    def _learn(self, frame: Frame) -> None:
        """What was heard of a forward that was followed: enough for the next one, or not."""
        calls, notes = self.listening.outlet.told or [], self.notes
        path = frame.path
        self._tries[path] = self._tries.get(path, 0) + 1
        if not calls or self.mode.families.inlined:
            return
        if self.late is None or not self.late.alone():
            return  # its caches are updated while it runs, and which call read which must be seen
        found = _parts(calls, notes, self._calls, self.mode.routes)
        if found is None or _share_memory(calls):
            return
        parts, used = found
        heard = [(part, part.among(used)) for part in parts]
        if nbytes_of(used) > ROOM or not all(intact(own) for _, own in heard):
            return
        again, alike = read(heard, self.listening, None)
        if alike and all(map(_same, again, calls)):
            steps = tuple([(note.function, note.path) for note in used])
            self._scores[path] = Score(tuple(parts), steps, self.listening.sizes)


def _parts(
    calls: Sequence[AttentionCall],
    notes: Sequence[Note],
    told_of: Sequence[int],
    routes: dict[tuple[str, int], Route],
) -> tuple[list[Part], list[Note]] | None:
    """What was heard of each call, and all that must be heard again; None where one can't be told.

    Args:
        calls: Of a forward that was followed.
        notes: What was heard of it.
        told_of: Calls that had been told of after each of them.
        routes: Of the sites.
    """
    found: list[tuple[AttentionCall, tuple[int, ...]]] = []
    softmax = product = None
    for at, note in enumerate(notes):
        if note.softmax:
            softmax = at
        elif told_of[at] == len(found):
            softmax, product = None, at  # of no call so far
        elif told_of[at] > len(found) + 1:
            return None
        else:
            three = (at,) if note.name == SDPA else (product, softmax, at)
            places = tuple([one for one in three if one is not None])
            call = calls[len(found)]
            # one head at a time is told of when all are there
            alone = call.queries.shape[1] < 2
            if len(places) < len(three) or note.path != call.module or alone:
                return None
            found.append((call, places))
            softmax = product = None
    own = {place for _, places in found for place in places}
    kept = [at for at, note in enumerate(notes) if at in own or not note.softmax]
    used, now = [notes[at] for at in kept], {at: n for n, at in enumerate(kept)}
    parts: list[Part] = []
    for call, places in found:
        moved = tuple([now[place] for place in places])
        route = routes.get((call.module, call.call))
        if len(moved) == 1:
            parts.append(Part.fused(call, moved[0], used))
        elif route is None:
            return None
        else:
            parts.append(Part.routed(call, route, (moved[0], moved[1], moved[2]), used))
    return (parts, used) if len(found) == len(calls) else None


def _share_memory(calls: Sequence[AttentionCall]) -> bool:
    """Whether two calls were given rows in the same place, which may have been written over."""
    places = [one.data_ptr() for call in calls for one in (call.keys, call.output)]
    return len(set(places)) < len(places)


def _same(one: AttentionCall, other: AttentionCall) -> bool:
    """Whether two readings of a call say the same."""
    pairs = ((one.queries, other.queries), (one.keys, other.keys), (one.values, other.values))
    rows = all(torch.equal(a, b) for a, b in (*pairs, (one.output, other.output)))
    alike = (one.visible is None) == (other.visible is None) and (
        one.visible is None or other.visible is None or torch.equal(one.visible, other.visible)
    )
    return rows and alike and other.bias is None and other.sinks is None
