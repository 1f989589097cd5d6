"""The query of a new token: the first thing that can differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.relations import (
    close,
    factor,
    factors,
    head_order,
    rounded_to,
    same_numbers,
)
from kvtrace.analysis.checks.scenes.rows import differing, only_heads
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_rows.positions import given, rotated
from kvtrace.analysis.checks.wrong_rows.rounded_input import rounded_input
from kvtrace.analysis.checks.wrong_rows.turned import (
    less_exact,
    rotation,
)
from kvtrace.trace.dtypes import Floats

_NUMBERS = 16
"""So many are not by chance the same in another order."""

_FAR = 8.0
"""Times what is rounding."""

_ROUNDED = 0.05
"""Of the largest number: rounding to a smaller type changes no more."""

_OTHERS_RIGHT = 50.0
"""Times what is rounding: where some heads are off by so much, others are not right by chance."""


def check_queries(scene: Scene) -> Finding | None:
    """Queries of live rows that differ from the reference, and how."""
    live = scene.live
    mine, theirs = scene.cached.queries[:, live], scene.reference.queries[:, live]
    atol = scene.atol.queries
    if close(mine, theirs, atol):
        return None
    wrong = np.flatnonzero((np.abs(mine - theirs) > atol).any(axis=(0, 2)))
    row = int(live[wrong[0]])
    mine, theirs = mine[:, wrong], theirs[:, wrong]
    places = scene.places[live[wrong]]

    heads = differing(mine, theirs, atol)
    head, which = only_heads(heads, len(mine), "head")

    def found(name: str, evidence: str) -> Finding:
        return Finding(name, scene.step, scene.layer, "q", evidence + which, head, row)

    other = _other(mine, theirs, atol)
    mine, theirs = mine[heads], theirs[heads]
    s = factor(mine, theirs, atol)
    if s is not None:
        return found(*_scaled(scene, s, places))
    if _compensated(scene, live) and rotation(mine, theirs, atol) is None:
        return found(
            "LENGTH-DEPENDENT-POSITIONS",
            f"q of place {places[0]} is off by up to {float(np.abs(mine - theirs).max()):.3g}, and "
            "the keys are off the other way: each q·k, and the output, is the recomputed one",
        )
    less = _less_exact(scene, mine, theirs, places) or _narrow_values(scene, mine, theirs, places)
    if less is not None:
        return found("DTYPE", f"q of place {places[0]}: {less}")
    # heads that are hardly off among right ones are turned in few planes, by chance
    alone = bool(which) and float(np.abs(mine - theirs).max()) < _FAR * atol
    turn = None if alone else rotation(mine, theirs, atol)
    if turn is not None:
        return rotated(scene, turn, places, found)
    return found(
        *other
        or _shared_out(scene, live[wrong])
        or _between(scene, mine, theirs, places)
        or (_other_heads(places, mine - theirs, atol) if which else None)
        or rounded_input(scene, live[wrong])
        or _clamped(scene, places)
        or _input(scene, int(places[0]), mine - theirs)
    )


def _compensated(scene: Scene, live: NDArray[np.int64]) -> bool:
    """Whether every product of a query with a row is right, and no longer with either one right.

    So it is where a length enters both sides and cancels out, as in xPos: q is stretched as much
    as k is shrunk.
    """
    rows = scene.seen[scene.supposed[scene.seen] >= 0]
    lane, right = scene.cached, scene.reference
    if not len(rows) or lane.keys.shape[::2] != right.keys.shape[::2]:
        return False
    if not right.queries[:, live].any():
        return False  # nothing that could be stretched
    if not close(lane.output[:, live], right.output[:, live], scene.atol.output):
        return False
    q, expected_q = lane.queries[:, live], right.queries[:, live]
    k, expected_k = lane.keys[:, rows], right.keys[:, scene.supposed[rows]]
    share = len(q) // len(k)
    k, expected_k = (np.repeat(one, share, axis=0) for one in (k, expected_k))
    expected = expected_q @ expected_k.swapaxes(1, 2)
    longest = np.linalg.norm(expected_q, axis=2).max() * np.linalg.norm(expected_k, axis=2).max()
    relative = scene.atol.queries / float(np.abs(expected_q).max())
    atol = _FAR * relative * longest
    if close(q @ expected_k.swapaxes(1, 2), expected, atol):
        return False
    return close(q @ k.swapaxes(1, 2), expected, atol)


def _scaled(scene: Scene, s: float, places: NDArray[np.int64]) -> tuple[str, str]:
    """Queries times a number: the scale of the scores, unless the values are as far off."""
    pair = _values(scene, places)
    if pair is not None and factor(*pair, scene.atol.values) is not None:
        return "UPSTREAM", f"q of place {places[0]} is {s:.4g} × the recomputed one, and so is v"
    return "SCALE", f"q = {s:.4g} × the recomputed q"


def _values(scene: Scene, places: NDArray[np.int64]) -> tuple[Floats, Floats] | None:
    """Values of some tokens in both lanes; None where they are not among the rows attended."""
    rows = np.flatnonzero(np.isin(scene.supposed, places))
    if not len(rows) or scene.cached.values.shape[::2] != scene.reference.values.shape[::2]:
        return None
    return scene.cached.values[:, rows], scene.reference.values[:, scene.supposed[rows]]


def _less_exact(
    scene: Scene, mine: Floats, theirs: Floats, places: NDArray[np.int64]
) -> str | None:
    """Queries that are nearly right, in words; values that are off tell of the input instead."""
    smaller = rounded_to(mine, theirs)
    pair = _values(scene, places)
    if smaller is None and pair is not None and not close(*pair, scene.atol.values):
        return None
    return less_exact(mine, theirs, scene.atol.queries)


def _narrow_values(
    scene: Scene, mine: Floats, theirs: Floats, places: NDArray[np.int64]
) -> str | None:
    """Values of the same tokens that fit in a smaller type, where q is off by no more than that."""
    far, size = float(np.abs(mine - theirs).max()), float(np.abs(theirs).max())
    pair = _values(scene, places) if far < _ROUNDED * size else None
    smaller = None if pair is None else rounded_to(*pair)
    if smaller is None:
        return None
    return f"it is off by {far:.2g} of {size:.3g}, and every number of its v fits in {smaller}"


def _between(
    scene: Scene, mine: Floats, theirs: Floats, places: NDArray[np.int64]
) -> tuple[str, str] | None:
    """Values of the same tokens are right, so the input is: what follows the projection differs."""
    place, pair = int(places[0]), _values(scene, places)
    far = float(np.abs(mine - theirs).max())
    # a little more than rounding need not show in the values
    if pair is None or not close(*pair, scene.atol.values) or far < _FAR * scene.atol.queries:
        return None
    each = factors(mine, theirs, scene.atol.queries)
    if each is not None:
        return "SCALE", (
            f"q of place {place} = {each[0]:.4g} × the recomputed q, each {each[1]} by a factor of "
            "its own, while v is right: a norm of q, or its weights, are used on one path only"
        )
    length, expected = (np.linalg.norm(one, axis=2) for one in (mine, theirs))
    if close(length, expected, 4 * scene.atol.queries):
        return "POSITION-ROPE", (
            f"q of place {place} keeps its length in every head and v is right, but it is turned "
            "in other planes than the recomputed q (halves for pairs?) or by another sign"
        )
    return "CONTENT", (
        f"q of place {place} is off by up to {far:.3g} while v of the same token is right: what "
        "comes between projection and attention differs (rotary embedding, norm of q and k)"
    )


def _clamped(scene: Scene, places: NDArray[np.int64]) -> tuple[str, str] | None:
    """Values of the same tokens that are cut off at a number on one path, and not on the other."""
    pair = _values(scene, places)
    if pair is None:
        return None
    for one, other, which in ((*pair, "without"), (*pair[::-1], "with")):
        most = float(np.abs(other).max())
        cut = np.abs(other) >= most * (1 - 1e-6)
        if (
            most
            and np.count_nonzero(cut) > 1
            and close(one.clip(-most, most), other, scene.atol.values)
        ):
            return "CONTENT", (
                f"v of place {places[0]} goes up to {float(np.abs(one).max()):.3g}, and "
                f"{which} the cache it is the same, but cut off at {most:.4g}: a clamp of q, k and "
                "v is used on one path only"
            )
    return None


def _other(mine: Floats, theirs: Floats, atol: float) -> tuple[str, str] | None:
    """A relation that is neither a factor nor a rotation."""
    order = head_order(mine, theirs, atol)
    if order is not None:
        return "HEAD-MAP", f"query heads {list(order)} stand where 0, 1, 2 … should"
    if theirs.size >= _NUMBERS and same_numbers(mine, theirs, atol):
        return "HEAD-RESHAPE", "q holds the same numbers in another arrangement"
    return None


def _shared_out(scene: Scene, new: NDArray[np.int64]) -> tuple[str, str] | None:
    """Queries, keys and values that hold the right numbers together, each of them wrong ones."""
    rows = np.flatnonzero(np.isin(scene.supposed, scene.places[new]))
    lane, right = scene.cached, scene.reference
    if len(rows) != len(new) or lane.keys.shape[::2] != right.keys.shape[::2]:
        return None
    there = scene.supposed[rows]
    mine = lane.queries[:, new], lane.keys[:, rows], lane.values[:, rows]
    theirs = right.queries[:, new], right.keys[:, there], right.values[:, there]
    one, other = (np.concatenate([rows.ravel() for rows in side]) for side in (mine, theirs))
    if not same_numbers(one, other, scene.atol.queries):
        return None
    return "HEAD-RESHAPE", (
        "q, k and v together hold the same numbers, shared out otherwise: one tensor of all three "
        "is split or viewed wrongly"
    )


def _other_heads(
    places: NDArray[np.int64], difference: Floats, atol: float
) -> tuple[str, str] | None:
    """Some heads are far off and the others right: so is what the layer was given."""
    far = float(np.abs(difference).max())
    if far < _OTHERS_RIGHT * atol:
        return None
    return "CONTENT", (
        f"q of place {places[0]} is off by up to {far:.3g} in some heads and right in the others, "
        "so the input of the layer is right: the projection, or what follows it, differs"
    )


def _input(scene: Scene, place: int, difference: Floats) -> tuple[str, str]:
    """Unrelated: what the layer was given differs already."""
    far = float(np.abs(difference).max())
    if scene.first_site:
        evidence = (
            f"q of place {place} differs by up to {far:.3g} and is no rotation of the right q"
            f"{given(scene, place)}"
        )
        return "POSITION-EMBEDDING", evidence
    return "UPSTREAM", f"q of place {place} already differs by up to {far:.3g}"
