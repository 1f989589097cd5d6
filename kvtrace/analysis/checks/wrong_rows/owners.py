"""Rows that belong to somebody else: another layer, another sequence, an earlier prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity, matches
from kvtrace.analysis.checks.scenes.relations import close
from kvtrace.analysis.checks.scenes.rows import (
    Indices,
    counted,
    differing,
    finding,
    named_slots,
    pair,
    supposed_inside,
    unknown,
)
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.scenes.supposed import FILLING, TAKEN_BACK
from kvtrace.trace.dtypes import Floats

_SEVERAL = 2
"""So many do not stand where another sequence has them by chance."""


def check_owner(scene: Scene, identity: Identity) -> Finding | None:
    """Rows of another layer, of another sequence, or of tokens that were taken back."""
    back = _taken_back(scene, identity) or _not_reordered(scene, identity)
    if back is not None:
        return back
    for tensor, known, zero in (
        ("k", identity.by_key, identity.key_is_zero),
        ("v", identity.by_value, identity.value_is_zero),
    ):
        rows = unknown(scene, known)
        for name, what, own, count, get in (
            ("WRONG-BATCH-ROW", "sequence", scene.sequence, scene.sequences, scene.sequence_rows),
            ("WRONG-LAYER", "layer", scene.layer, scene.layers, scene.layer_rows),
        ):
            for other in range(count if len(rows) else 0):
                there = None if other == own else get(other)
                if there is None:
                    continue
                mine = _owned(scene, tensor, rows, there[0] if tensor == "k" else there[1])
                mine &= ~zero[rows]  # nobody's, though a token may have such a row, too
                if mine.mean() > 0.5:
                    owned = rows[mine]
                    whose = scene.spoken(other) if what == "layer" else _sequence(scene, other)
                    evidence = _belong(len(owned), len(rows), tensor, whose)
                    return finding(scene, name, tensor, evidence, owned)
        mixed = _mixed(scene, tensor, rows)
        if mixed is not None:
            return mixed
    return None


def _mixed(scene: Scene, tensor: str, rows: Indices) -> Finding | None:
    """Heads of other sequences among those of this one: batch and heads were taken for each other.

    Every head that is wrong must be one of some sequence, where that one has it.
    """
    inside = rows[supposed_inside(scene, rows)]
    mine, right, atol = pair(scene, tensor, inside)
    if len(inside) < _SEVERAL or mine.shape != right.shape or scene.sequences < 2:
        return None
    heads, where = differing(mine, right, atol), dict[int, tuple[int, int]]()
    for other in range(scene.sequences):
        there = scene.sequence_rows(other)
        table = None if there is None else there[tensor == "v"]
        if table is None or scene.supposed[inside].max() >= table.shape[1]:
            continue
        for head in set(heads.tolist()) - set(where):
            apart = np.abs(table[:, scene.supposed[inside]] - mine[head]).max(axis=(1, 2))
            found = np.flatnonzero(apart <= atol)
            if len(found):
                where[head] = (other, int(found[0]))
    others = sorted(head for head, (other, _) in where.items() if other != scene.sequence)
    if len(where) < len(heads) or not others:
        return None
    head = others[0]
    evidence = (
        f"kv head {head} of {counted(len(inside))} of {tensor} is head {where[head][1]} of "
        f"{_sequence(scene, where[head][0])}"
    )
    return finding(scene, "WRONG-BATCH-ROW", tensor, evidence, inside, head)


def _belong(owned: int, unexpected: int, tensor: str, whose: str) -> str:
    if unexpected == 1:
        return f"the one unexpected row of {tensor} is that of {whose}"
    return f"{owned} of {unexpected} unexpected rows of {tensor} are those of {whose}"


def _sequence(scene: Scene, other: int) -> str:
    """Another sequence, in words."""
    ended = other >= (scene.current or scene.sequences)
    return "a sequence that ended in the step before" if ended else f"sequence {other}"


def _not_reordered(scene: Scene, identity: Identity) -> Finding | None:
    """Rows of another sequence that pass for other ones of this text: its tokens are the same.

    Keys without a position do so, right after sequences were reordered; values do so wherever
    texts share tokens, and are known by standing where that sequence has them. One place further
    they are more likely shifted.
    """
    reordered = scene.current is not None and scene.sequences != scene.current
    inside = scene.seen[supposed_inside(scene, scene.seen)]
    for tensor, known in (("k", identity.place), ("v", identity.by_value)):
        away = np.abs(known[inside] - scene.supposed[inside])
        rows = inside[(known[inside] >= 0) & (away > 0)]
        shifted = tensor == "v" and (len(rows) < _SEVERAL or away[known[inside] >= 0].max() < 2)
        if not len(rows) or shifted or not (tensor == "v" or reordered):
            continue
        mine, _, atol = scene.both(tensor)
        places = scene.supposed[rows]
        for other in range(scene.sequences):
            both = None if other == scene.sequence else scene.sequence_rows(other)
            there = None if both is None else both[tensor == "v"]
            if there is None or places.max() >= there.shape[1]:
                continue
            if close(mine[:, rows], there[:, places], atol):
                evidence = f"{counted(len(rows))} of {tensor}: what {_sequence(scene, other)} has"
                return finding(scene, "WRONG-BATCH-ROW", tensor, f"{evidence} there", rows)
    return None


def _taken_back(scene: Scene, identity: Identity) -> Finding | None:
    """Rows of a rejected draft, or of another branch, that this layer did not drop; of filling."""
    every = unknown(scene, identity.by_key)
    filling = every[scene.supposed[every] == FILLING]
    if len(filling):
        who = f"the query of place {scene.places[scene.live[-1]]}"
        filled = f"filled its prompt up at the right, {named_slots(scene, filling)}"
        evidence = f"{who} sees what {filled}"
        return finding(scene, "PAD-VISIBLE", "k", evidence, filling)
    rows = every[scene.supposed[every] == TAKEN_BACK]
    if not len(rows):
        return None
    evidence = (
        f"{counted(len(rows))} in {named_slots(scene, rows)}: of tokens that were taken back "
        "(a rejected draft, another branch); this layer did not drop them"
    )
    return finding(scene, "STALE-CACHE", "k", evidence, rows)


def _owned(scene: Scene, tensor: str, rows: Indices, there: Floats) -> NDArray[np.bool_]:
    """Which rows are those of another layer or sequence, whole or as far as they are wrong."""
    held, _, atol = scene.both(tensor)
    found = matches(held[:, rows], there, scene.supposed[rows], atol) >= 0
    inside = supposed_inside(scene, rows)
    if found.any() or not inside.all() or held.shape[::2] != there.shape[::2]:
        return found
    mine, theirs, _ = pair(scene, tensor, rows)
    wrong = np.flatnonzero((np.abs(mine - theirs) > atol).any(axis=(0, 1)))
    if 4 <= len(wrong) < mine.shape[2]:
        places = scene.supposed[rows]
        if places.max() < there.shape[1]:
            apart = np.abs(mine - there[:, places])[:, :, wrong]
            found = np.asarray((apart <= atol).all(axis=(0, 2)), np.bool_)
    return found


def check_stale(scene: Scene, identity: Identity) -> Finding | None:
    """The first step sees more rows than its own tokens."""
    if not scene.first_step:
        return None
    seen = scene.seen
    foreign = seen[identity.place[seen] < 0]
    own = np.flatnonzero(identity.place >= scene.padding)
    # where rows are chosen, a wrong choice may see more of the text's own
    more = len(seen) > max(len(scene.wanted), len(scene.live))
    hidden = len(own) and not np.isin(own, seen).any() and len(foreign)
    if not len(foreign) or identity.key_is_zero[foreign].any() or not (more or hidden):
        return None
    of_others = check_owner(scene, identity)
    if of_others is not None:
        return of_others
    evidence = (
        f"{len(foreign)} rows that are no token of this prompt, {named_slots(scene, foreign)}"
    )
    if scene.step == 0:
        evidence += ", in the first step recorded: left of what ran before, if anything did"
    return finding(scene, "STALE-CACHE", "k", evidence, foreign)
