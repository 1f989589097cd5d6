"""Which token an attended row really belongs to, told by its content.

Values carry no position, keys do: a row is known by its value, and its key says whether the
position is right. Equal tokens have equal rows: then the place a row is supposed to hold wins.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.trace.dtypes import Floats

_DIRECTIONS = 4


class Identity(Struct, frozen=True):
    """Places found for each attended row, [seq]; -1: matches no reference row.

    Attributes:
        by_key: Told by the key.
        by_value: Told by the value.
        key_is_zero, value_is_zero: All heads zero.
    """

    by_key: NDArray[np.int64]
    by_value: NDArray[np.int64]
    key_is_zero: NDArray[np.bool_]
    value_is_zero: NDArray[np.bool_]

    @property
    def place(self) -> NDArray[np.int64]:
        """Told by the key where it matches, else by the value."""
        return np.where(self.by_key >= 0, self.by_key, self.by_value)


def identify(scene: Scene) -> Identity:
    """Identify every attended row of a scene."""
    keys, values = scene.cached.keys, scene.cached.values
    by_key = matches(keys, scene.reference.keys, scene.supposed, scene.atol.keys)
    by_value = matches(values, scene.reference.values, scene.supposed, scene.atol.values)
    # where one of both is ambiguous, the other decides
    by_value = _prefer(by_value, by_key, values, scene.reference.values, scene.atol.values)
    by_key = _prefer(by_key, by_value, keys, scene.reference.keys, scene.atol.keys)
    by_key, by_value = _by_chance(scene, by_key, by_value)
    # what a padding token holds is nobody's promise: it is where it is supposed to be
    padding = (scene.supposed >= 0) & (scene.supposed < scene.padding)
    by_key = np.where(padding & (by_key < 0), scene.supposed, by_key)
    by_value = np.where(padding & (by_value < 0), scene.supposed, by_value)
    return Identity(by_key, by_value, _zero(keys), _zero(values))


def matches(
    rows: Floats, reference: Floats, supposed: NDArray[np.int64], atol: float
) -> NDArray[np.int64]:
    """The place of each row in `reference`, the supposed one first; -1 without a match.

    Args:
        rows: [heads, seq, dim].
        reference: [heads, places, dim].
        supposed: [seq], -1: none.
        atol: Absolute difference that counts as equal.
    """
    found = np.full(rows.shape[1], -1, np.int64)
    if rows.shape[0] != reference.shape[0] or rows.shape[2] != reference.shape[2]:
        return found
    inside = (supposed >= 0) & (supposed < reference.shape[1])
    here = np.flatnonzero(inside)
    differs = np.abs(rows[:, here] - reference[:, supposed[here]]).max(axis=(0, 2), initial=0)
    same = here[differs <= atol]
    found[same] = supposed[same]
    rest = np.flatnonzero(found < 0)
    for row, places in zip(rest, _search(rows[:, rest], reference, atol), strict=True):
        if len(places):
            near = np.abs(places - max(int(supposed[row]), 0))
            found[row] = places[near.argmin()]
    return found


def _search(rows: Floats, reference: Floats, atol: float) -> list[NDArray[np.int64]]:
    """Places equal to each row; a few projections first, so that few are compared in full."""
    if not rows.size or not reference.size:
        return [np.zeros(0, np.int64)] * rows.shape[1]
    flat = rows.transpose(1, 0, 2).reshape(rows.shape[1], -1)
    table = reference.transpose(1, 0, 2).reshape(reference.shape[1], -1)
    directions = np.random.default_rng(0).standard_normal((table.shape[1], _DIRECTIONS))
    reach = atol * np.abs(directions).sum(axis=0)
    mine, theirs = flat @ directions, table @ directions
    out = []
    for row, shadow in zip(flat, mine, strict=True):
        near = np.flatnonzero((np.abs(theirs - shadow) <= reach).all(axis=1))
        out.append(near[np.abs(table[near] - row).max(axis=1, initial=0) <= atol])
    return out


def _prefer(
    found: NDArray[np.int64],
    other: NDArray[np.int64],
    rows: Floats,
    reference: Floats,
    atol: float,
) -> NDArray[np.int64]:
    """Where `other` names a different place that fits these rows just as well, take it."""
    ask = np.flatnonzero((found >= 0) & (other >= 0) & (found != other))
    if not len(ask):
        return found
    fits = np.abs(rows[:, ask] - reference[:, other[ask]]).max(axis=(0, 2)) <= atol
    out = found.copy()
    out[ask[fits]] = other[ask[fits]]
    return out


def _by_chance(
    scene: Scene, by_key: NDArray[np.int64], by_value: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where most keys match none, one that is an equal token's is not that token's row.

    Keys that all stand at a wrong position are those of equal tokens that do stand there.
    """
    known = (scene.supposed >= 0) & (scene.supposed < scene.reference.values.shape[1])
    inside = np.flatnonzero(known)
    places = scene.supposed[inside]
    right = scene.reference.values[:, places]
    if scene.cached.values[:, inside].shape != right.shape:
        return by_key, by_value
    far = np.abs(scene.cached.values[:, inside] - right).max(axis=(0, 2), initial=0)
    own = inside[far <= scene.atol.values]
    if 2 * np.count_nonzero(by_key[own] < 0) <= len(own):
        return by_key, by_value
    astray = own[(by_key[own] >= 0) & (by_key[own] != scene.supposed[own])]
    by_key, by_value = by_key.copy(), by_value.copy()
    by_key[astray], by_value[astray] = -1, scene.supposed[astray]
    return by_key, by_value


def _zero(rows: Floats) -> NDArray[np.bool_]:
    return np.asarray((rows == 0).all(axis=(0, 2)), np.bool_)
