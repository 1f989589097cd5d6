"""What one query sees, against what it should see, and what the difference is called."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.rows import counted
from kvtrace.analysis.checks.scenes.scene import Scene

Rows = NDArray[np.intp]

_SINKS = 8
"""So many first rows are kept beside a window at most."""


@dataclass(slots=True)
class Sight:
    """What one query sees, against what it should see.

    Attributes:
        scene: Where.
        query: Which, of the new rows.
        seen: Place of each row that it sees; one that stands there twice is named twice.
        want: Places that it should see.
        held: Places of all rows that are there, hidden or not.
        have: Places that it sees.
        missing, extra: Places that it lacks, and that it sees beyond those wanted.
        hidden: Whether the rows it lacks are there: only the mask keeps them from it.
        overwritten: Slots that were changed since the step before, where that may explain it.
    """

    scene: Scene
    query: int
    seen: list[int]
    want: set[int]
    held: set[int]
    have: set[int] = field(init=False)
    missing: list[int] = field(init=False)
    extra: list[int] = field(init=False)
    hidden: bool = field(init=False)
    overwritten: Rows = field(init=False)

    def __post_init__(self) -> None:
        scene, self.have = self.scene, set(self.seen)
        self.missing, self.extra = sorted(self.want - self.have), sorted(self.have - self.want)
        self.hidden = set(self.missing) <= self.held
        self.overwritten = scene.slots[scene.changed]
        if self.hidden or (scene.lost is not None and not scene.lost & set(self.missing)):
            self.overwritten = self.overwritten[:0]  # what was replaced is not what is missing

    @property
    def twice(self) -> int:
        """Rows that stand there again."""
        return len(self.seen) - len(self.have)

    @property
    def place(self) -> int:
        """Its own place in the text."""
        return int(self.scene.places[self.query])

    @property
    def cross(self) -> bool:
        """Whether it attends to an encoder."""
        return self.scene.site.kind == "cross"

    @property
    def who(self) -> str:
        """As a sentence begins."""
        return "a query" if self.cross else f"the query of place {self.place}"


def named(sight: Sight) -> tuple[str, str, str] | None:
    """(kind, tensor, evidence), told apart in this order; None: it sees what it should."""
    who, missing, extra = sight.who, sight.missing, sight.extra
    if sight.twice > 0 and not missing:
        return "DUPLICATE-ROWS", "k", f"{who} sees {counted(sight.twice)} twice"
    if not missing and not extra:
        return None
    if extra and max(extra) > sight.place:
        return "MASK-FUTURE", "mask", f"{who} sees {_later(extra)}"
    if missing and extra:
        return _others_instead(sight)
    return _too_few(sight) if missing else _too_many(sight)


def _too_few(sight: Sight) -> tuple[str, str, str]:
    """Rows are missing, and none is there instead."""
    scene, who, have, missing = sight.scene, sight.who, sight.have, sight.missing
    new = len(scene.places)
    if new > 1 and have == set(range(scene.padding, scene.padding + sight.query + 1)):
        only = f"(row {sight.query} of {new}) sees only {_list(have)}"
        return "MASK-TOP-LEFT", "mask", f"{who} {only}"
    own = {int(p) for p in scene.places[: sight.query + 1]}
    if have and have <= own and not set(missing) <= own:
        lost = f"{len(missing)} cached rows are missing"
        if sight.twice:
            lost += f", in {sight.twice} other slots it stands again"
        return "HISTORY-LOST", "k", f"{who} sees only {_list(have)}, {lost}"
    if have and have == {min(sight.want)}:
        return "MASK-TOP-LEFT", "mask", f"{who} sees only place {min(sight.want)}"
    if missing == [sight.place]:
        return "NEWEST-MISSING", "mask", f"{who} sees {len(have)} rows, but not its own"
    newest = missing == list(range(missing[0], sight.place + 1))
    if have and newest and sight.hidden and new == 1:
        hidden = f"the newest {len(missing)}: {_list(missing)}, its own among them"
        return "NEWEST-MISSING", "mask", f"{who} does not see {hidden}"
    return _older_lost(sight)


def _older_lost(sight: Sight) -> tuple[str, str, str]:
    """Some older rows are missing: overwritten, dropped too soon, or hidden."""
    missing, overwritten = sight.missing, sight.overwritten
    if sight.scene.cropped and not sight.hidden and _newest(sight.scene, missing):
        evidence = f"{sight.who} does not see place{_s(missing)} {_list(missing)}"
        cropped = f"{evidence}: the cache was cropped, and the position not set back with it"
        return "HISTORY-LOST", "k", cropped
    oldest = missing == sorted(sight.want)[: len(missing)]
    alone = len(missing) == len(sight.scene.places) == 1 and not len(overwritten)
    ring = _took(sight.scene, sight.place) if oldest and alone and not sight.hidden else None
    if ring is not None:
        seen = f"{len(sight.have)} rows seen instead of {len(sight.want)}"
        lost = f"place {_list(missing)} is lost: {seen}"
        evidence = f"the new row stands in slot {ring}, among older ones; {lost}"
        return "ROW-OVERWRITTEN", "k", evidence
    if oldest and len(overwritten) != 1:
        return _too_soon(sight)
    if len(overwritten) and not _moved_up(sight):
        evidence = f"slot {overwritten[0]} changed since the step before, {_list(missing)} lost"
        return "ROW-OVERWRITTEN", "k", evidence
    return _some_gone(sight)


def _moved_up(sight: Sight) -> bool:
    """Whether the rows behind those that are missing stand where they were, or some of them do.

    So it is where more are missing than new ones came, or where all that follow moved in order:
    what overwrites rows is new.
    """
    scene, missing = sight.scene, sight.missing
    moved = scene.supposed[scene.changed]
    more = len(missing) > max(len(sight.overwritten), len(scene.places))
    follow = np.arange(missing[-1] + 1, missing[-1] + 1 + len(moved))
    if len(moved) > len(scene.places) and np.array_equal(moved, follow):
        return True
    return more and missing[-1] + 1 in moved


def _too_soon(sight: Sight) -> tuple[str, str, str]:
    """The oldest rows are not seen: they are gone, or hidden."""
    missing = sight.missing
    evidence = f"{sight.who} lacks the oldest {len(missing)}: {_list(missing)}"
    if sight.hidden:
        are = "they are" if len(missing) > 1 else "it is"
        if missing[-1] + 1 in sight.scene.paddings():
            own = missing[-1] + 1 == sight.scene.padding
            whose = "its own padding" if own else "the padding of another sequence"
            whose += " is hidden here" + (", and is not without the cache" if own else "")
            return "MASK", "mask", f"{evidence}; {are} still there: {whose}"
        return "EVICTED-EARLY", "mask", f"{evidence}; {are} still there, hidden by the mask"
    return "EVICTED-EARLY", "k", evidence


def _some_gone(sight: Sight) -> tuple[str, str, str]:
    """Rows within the text are not seen: others stand there, or none."""
    evidence = f"{sight.who} does not see place{_s(sight.missing)} {_list(sight.missing)}"
    if sight.twice and not sight.hidden:
        again = "another row stands" if sight.twice == 1 else f"{sight.twice} other rows stand"
        return "WRONG-SLOT", "k", f"{evidence}: {again} there once more"
    kept = _kept_first(sight) if sight.hidden else 0
    if kept:
        first = f"the first {kept} are" if kept > 1 else "the first is"
        shown = f"{evidence}: {first} seen, and the newest, as with a window that keeps sinks"
        return "EVICTED-EARLY", "mask", f"{shown}; what it lacks is still there, hidden"
    return "MASK", "mask" if sight.hidden else "k", evidence


def _kept_first(sight: Sight) -> int:
    """How many first rows are seen, where all those behind them are not until the newest; or 0."""
    ordered = sorted(sight.want)
    kept = ordered.index(sight.missing[0])
    behind = ordered[kept : kept + len(sight.missing)] == sight.missing
    newest = len(ordered) - kept - len(sight.missing)
    apart = kept > 0 and ordered[kept - 1] + 1 < sight.missing[0]  # a window begins with it
    few = 0 < kept <= _SINKS and (apart or len(sight.missing) > 1) and newest > 1
    return kept if few and behind and not sight.cross else 0


def _others_instead(sight: Sight) -> tuple[str, str, str]:
    """Rows are missing, and others are seen."""
    missing, extra, slots = sight.missing, sight.extra, sight.overwritten
    evidence = f"{sight.who} lacks {_list(missing)} and sees {_list(extra)}"
    if _taken_back(sight.scene, missing, extra):
        older = f"{evidence}, older than its window: the rows are those of an earlier moment"
        return "HISTORY-LOST", "k", older
    if sight.hidden:  # all of its own are there: the mask is that of other lengths
        padding = [place for place in extra if place < sight.scene.padding]
        if padding or sight.cross:
            shown = f"{evidence}: {_list(padding or extra)} is padding"
            return "PAD-VISIBLE", "mask", f"{shown}, and what it lacks is hidden"
        return "MASK", "mask", f"{evidence}: what it lacks is there, and hidden"
    changed = f"; slot {slots[0]} changed" if len(slots) else ""
    return "WRONG-SLOT", "k", evidence + changed


def _too_many(sight: Sight) -> tuple[str, str, str]:
    """Rows are seen that should not be, and none is missing."""
    who, extra, padding = sight.who, sight.extra, sight.scene.padding
    if sight.cross:  # what the first step hid of an encoder's rows can only be padding
        return "PAD-VISIBLE", "mask", f"{who} sees padding of the encoder, places {_list(extra)}"
    if min(extra) < padding:
        return "PAD-VISIBLE", "mask", f"{who} sees padding, places {_list(extra)}"
    if max(extra) < min(sight.want, default=0):
        return "WINDOW", "mask", f"{who} sees {len(extra)} older row{_s(extra)}: {_list(extra)}"
    if _behind_sinks(sight):
        older = f"{len(extra)} row{_s(extra)} older than its window: {_list(extra)}"
        return "WINDOW", "mask", f"{who} sees {older}; the first rows are kept beside it"
    return "MASK", "mask", f"{who} sees place{_s(extra)} {_list(extra)} that it should not"


def _behind_sinks(sight: Sight) -> bool:
    """Whether rows are seen just before a window that keeps the first ones beside it."""
    first, last = sight.extra[0], sight.extra[-1]
    older = [place for place in sight.want if place < first]
    newer = [place for place in sight.want if place > last]
    window = [*range(last + 1, sight.place + 1)]
    whole = last - first + 1 == len(sight.extra) and sorted(newer) == window
    begin = sight.scene.padding
    return (
        whole and 0 < len(older) <= _SINKS and sorted(older) == [*range(begin, begin + len(older))]
    )


def _taken_back(scene: Scene, missing: list[int], extra: list[int]) -> bool:
    """Whether several of the newest cached rows are gone, and older ones stand there again."""
    return len(missing) > 1 and _newest(scene, missing) and max(extra) < missing[0]


def _newest(scene: Scene, missing: list[int]) -> bool:
    """Whether places are the last ones before the new rows."""
    first = int(scene.places[0])
    return missing == [*range(first - len(missing), first)]


def _took(scene: Scene, place: int) -> int | None:
    """The slot of a new row that stands among older ones, as in a ring; None: it stands last."""
    slots = scene.slots[scene.supposed == place]
    others = scene.slots[scene.seen]
    return int(slots[0]) if len(slots) == 1 and slots[0] < others.max(initial=-1) else None


def _s(places: list[int]) -> str:
    return "s" if len(places) > 1 else ""


def _later(places: list[int]) -> str:
    return f"later place{_s(places)} {_list(places)}"


def _list(places: set[int] | list[int]) -> str:
    """Places as people read them."""
    ordered = sorted(places)
    if len(ordered) > 3 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]} to {ordered[-1]}"
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(map(str, ordered[:5])) + more
