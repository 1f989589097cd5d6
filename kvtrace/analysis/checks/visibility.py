"""Which tokens each query sees, by content, against which it should see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.identify import Identity
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.rows import counted
from kvtrace.analysis.checks.scene import Scene

Rows = NDArray[np.intp]


def check_visibility(scene: Scene, identity: Identity) -> Finding | None:
    """Compare, for the first and last live query, the places seen with the places wanted."""
    live = scene.live
    for query in dict.fromkeys((int(live[0]), int(live[-1]))):
        rows = np.flatnonzero(scene.cached.visible[query])
        places = identity.place[rows]
        if (places < 0).any():
            continue
        have = set(places.tolist())
        want = set(np.flatnonzero(scene.reference.visible[query]).tolist())
        missing, extra = sorted(want - have), sorted(have - want)
        twice = len(places) - len(have)
        held = set(identity.place.tolist())
        name_evidence = _named(scene, query, have, (missing, extra, twice), (want, held))
        if name_evidence is not None:
            name, tensor, evidence = name_evidence
            if (name, tensor) == ("MASK", "k"):
                evidence += ": no such row is there, it was dropped or never written"
            row = query if tensor == "mask" else _row(scene, rows, places, extra)
            return Finding(name, scene.step, scene.layer, tensor, evidence, row=row)
    return None


def check_ahead(scene: Scene, identity: Identity) -> Finding | None:
    """Later tokens that are seen: the last query then sees a row that nobody has written yet."""
    found = check_visibility(scene, identity)
    return found if found is not None and found.name == "MASK-FUTURE" else None


def said_of(
    scene: Scene, query: int, have: set[int], want: set[int]
) -> tuple[str, str, str] | None:
    """(kind, tensor, evidence) of a query that sees some places and should see others."""
    difference = sorted(want - have), sorted(have - want), 0
    return _named(scene, query, have, difference, (want, have))


def _row(scene: Scene, rows: Rows, places: Rows, extra: list[int]) -> int | None:
    """The attended row to look at: one that was replaced, is not wanted, or stands there twice.

    None where rows are missing and none is wrong.
    """
    changed = np.flatnonzero(scene.changed)
    if extra:
        unwanted = rows[np.isin(places, extra)]
        both = np.intersect1d(changed, unwanted)
        return int(both[0] if len(both) else unwanted[0])
    first = np.unique(places, return_index=True)[1]
    twice = np.setdiff1d(np.arange(len(places)), first)
    if len(twice):
        return int(rows[twice[0]])
    return int(changed[0]) if len(changed) else None


def _named(  # noqa: C901, PLR0911, PLR0912 - one signature a branch, in the order that tells them apart
    scene: Scene,
    query: int,
    have: set[int],
    difference: tuple[list[int], list[int], int],
    known: tuple[set[int], set[int]],
) -> tuple[str, str, str] | None:
    (missing, extra, twice), (want, held) = difference, known
    place, new = int(scene.places[query]), len(scene.places)
    cross = scene.site.kind == "cross"
    who = "a query" if cross else f"the query of place {place}"
    overwritten = scene.slots[scene.changed]
    hidden = set(missing) <= held  # the rows are there: only the mask keeps them from the query
    if hidden or (scene.lost is not None and not scene.lost & set(missing)):
        overwritten = overwritten[:0]  # what was replaced is not what is missing
    if twice > 0 and not missing:
        return "DUPLICATE-ROWS", "k", f"{who} sees {counted(twice)} twice"
    if not missing and not extra:
        return None
    if extra and max(extra) > place:
        return "MASK-FUTURE", "mask", f"{who} sees {_later(extra)}"
    if missing and not extra:
        if new > 1 and have == set(range(scene.padding, scene.padding + query + 1)):
            return "MASK-TOP-LEFT", "mask", f"{who} (row {query} of {new}) sees only {_list(have)}"
        own = {int(p) for p in scene.places[: query + 1]}
        if have and have <= own and not set(missing) <= own:
            lost = f"{len(missing)} cached rows are missing"
            if twice:
                lost += f", in {twice} other slots it stands again"
            return "HISTORY-LOST", "k", f"{who} sees only {_list(have)}, {lost}"
        if have and have == {min(want)}:
            return "MASK-TOP-LEFT", "mask", f"{who} sees only place {min(want)}"
        if missing == [place]:
            return "NEWEST-MISSING", "mask", f"{who} sees {len(have)} rows, but not its own"
        oldest = sorted(want)[: len(missing)]
        alone = len(missing) == new == 1 and not len(overwritten) and not hidden
        ring = _took(scene, place) if alone else None
        if missing == oldest and ring is not None:
            lost = f"place {_list(missing)} is lost: {len(have)} rows seen instead of {len(want)}"
            evidence = f"the new row stands in slot {ring}, among older ones; {lost}"
            return "ROW-OVERWRITTEN", "k", evidence
        if missing == oldest and len(overwritten) != 1:
            return _too_soon(who, missing, hidden=hidden)
        if len(overwritten):
            evidence = f"slot {overwritten[0]} changed since the step before, {_list(missing)} lost"
            return "ROW-OVERWRITTEN", "k", evidence
        if missing == oldest:
            return _too_soon(who, missing, hidden=hidden)
        return _some_gone(who, missing, twice, hidden=hidden)
    if missing:
        evidence = f"{who} lacks {_list(missing)} and sees {_list(extra)}"
        if _taken_back(scene, missing, extra):
            older = f"{evidence}, older than its window: the rows are those of an earlier moment"
            return "HISTORY-LOST", "k", older
        slot = f"; slot {overwritten[0]} changed" if len(overwritten) else ""
        return "WRONG-SLOT", "k", evidence + slot
    if cross:  # what the first step hid of an encoder's rows can only be padding
        return "PAD-VISIBLE", "mask", f"{who} sees padding of the encoder, places {_list(extra)}"
    if min(extra) < scene.padding:
        return "PAD-VISIBLE", "mask", f"{who} sees padding, places {_list(extra)}"
    if max(extra) < min(want, default=0):
        return "WINDOW", "mask", f"{who} sees {len(extra)} older row{_s(extra)}: {_list(extra)}"
    return "MASK", "mask", f"{who} sees places {_list(extra)} that it should not"


def _too_soon(who: str, missing: list[int], *, hidden: bool) -> tuple[str, str, str]:
    """The oldest rows are not seen: they are gone, or hidden."""
    evidence = f"{who} lacks the oldest {len(missing)}: {_list(missing)}"
    if hidden:
        are = "they are" if len(missing) > 1 else "it is"
        return "EVICTED-EARLY", "mask", f"{evidence}; {are} still there, hidden by the mask"
    return "EVICTED-EARLY", "k", evidence


def _some_gone(who: str, missing: list[int], twice: int, *, hidden: bool) -> tuple[str, str, str]:
    """Rows within the text are not seen: others stand there, or none."""
    evidence = f"{who} does not see place{_s(missing)} {_list(missing)}"
    if twice and not hidden:
        again = "another row stands" if twice == 1 else f"{twice} other rows stand"
        return "WRONG-SLOT", "k", f"{evidence}: {again} there once more"
    return "MASK", "mask" if hidden else "k", evidence


def _taken_back(scene: Scene, missing: list[int], extra: list[int]) -> bool:
    """Whether several of the newest cached rows are gone, and older ones stand there again."""
    newest = range(int(scene.places[0]) - len(missing), int(scene.places[0]))
    return len(missing) > 1 and missing == [*newest] and max(extra) < missing[0]


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
