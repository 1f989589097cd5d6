"""Which rows a query really mixed, told by its output: another mask may be used than was seen.

Every set of rows is tried forwards: share the right weights among it and see whether the output of
the cached lane comes out. Tried are sets that bugs leave: a prefix, a suffix, all but one, the own
rows alone, and rows that should be hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.wrong_output.minimum import least

Wide = NDArray[np.float64]
Places = NDArray[np.int64]
Rows = NDArray[np.bool_]

_LONGEST = 2048
"""Rows up to which sets are tried; each takes a table of the values."""

_NEAR = 8
"""So many rows beyond those wanted are tried one by one."""

_LOWERED = 14.0
"""Scores lowered by more weigh less than rounding."""


class Mixture(Struct, frozen=True):
    """Some heads of one query, and rows it may have mixed.

    Attributes:
        logits: Logarithm of the weights up to a constant of each head, [heads, rows].
        values: [heads, rows, dim].
        output: What came out, [heads, dim].
        places: Of the rows, ascending.
        wanted: Rows that should be seen.
        own: Places of the step's new rows up to the query.
        padding: Places below are padding.
        atol: What is rounding.
    """

    logits: Wide
    values: Wide
    output: Wide
    places: Places
    wanted: Rows
    own: frozenset[int]
    padding: int
    atol: float


def seen_instead(mix: Mixture) -> set[int] | None:
    """The places that explain the output, where they are not those wanted; None: no set does."""
    if not 1 < len(mix.places) <= _LONGEST:
        return None
    for rows in (*_fewer(mix), *_more(mix)):
        if rows.any() and not np.array_equal(rows, mix.wanted) and _explains(mix, rows):
            return set(mix.places[rows].tolist())
    return None


def leaked(mix: Mixture) -> tuple[set[int], float] | None:
    """Places seen where the mask lowers the scores of hidden rows only a little, and by how much.

    None: no such mask explains the output.
    """
    if not 1 < len(mix.places) <= _LONGEST:
        return None
    for rows in _more(mix):
        hidden = rows & ~mix.wanted

        def off(lower: float, rows: Rows = rows, hidden: Rows = hidden) -> float:
            logits = mix.logits - lower * hidden
            return _misfit(replace(mix, logits=logits), rows)

        if hidden.any():
            lower, misfit = least(off, np.linspace(0, _LOWERED, 57))
            if misfit <= mix.atol and lower > _LOWERED / 1000:
                return set(mix.places[rows].tolist()), lower
    return None


def best_only(mix: Mixture) -> int | None:
    """How many rows each head mixes, where those are its highest scored ones; else None."""
    count = len(mix.places)
    if not bool(mix.wanted.all()) or not 2 < count <= _LONGEST:
        return None
    order = np.argsort(-mix.logits, axis=1, kind="stable")
    logits = np.take_along_axis(mix.logits, order, 1)
    values = np.take_along_axis(mix.values, order[..., None], 1)
    shares = np.exp(logits - logits[:, :1])
    made = np.cumsum(shares[..., None] * values, axis=1)
    made /= np.cumsum(shares, axis=1)[..., None]
    off = np.abs(made - mix.output[:, None]).max(axis=(0, 2))[:-1]
    best = int(off.argmin())
    return best + 1 if off[best] <= mix.atol else None


def _explains(mix: Mixture, rows: Rows) -> bool:
    return _misfit(mix, rows) <= mix.atol


def _misfit(mix: Mixture, rows: Rows) -> float:
    """Largest error of the output if these rows were mixed."""
    logits = mix.logits[:, rows]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    made = np.einsum("hr,hrd->hd", weights, mix.values[:, rows])
    return float(np.abs(made - mix.output).max())


def _fewer(mix: Mixture) -> Iterator[Rows]:
    """Sets without some of the wanted rows: the likeliest first, then the best of each kind."""
    wanted, places = mix.wanted, mix.places
    first = np.flatnonzero(wanted)
    if len(first) < 2:
        return
    own = wanted & np.isin(places, list(mix.own))
    top_left = np.zeros_like(wanted)
    top_left[first[: len(mix.own)]] = True
    yield top_left
    yield own
    logits = mix.logits[:, first]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    mass = shares[..., None] * mix.values[:, first]
    for kept in (_suffix(shares, mass, mix), _prefix(shares, mass, mix), _one(shares, mass, mix)):
        rows = np.zeros_like(wanted)
        rows[first[kept]] = True
        yield rows
    solved = _solved(mix, first)
    if solved is not None:
        yield solved


def _suffix(shares: Wide, mass: Wide, mix: Mixture) -> slice:
    """The rows from one on whose mixture comes closest."""
    below = np.cumsum(shares[:, ::-1], axis=1)[:, ::-1]
    made = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1]
    return slice(1 + _closest(made[:, 1:], below[:, 1:], mix), None)


def _prefix(shares: Wide, mass: Wide, mix: Mixture) -> slice:
    """The rows up to one whose mixture comes closest."""
    below, made = np.cumsum(shares, axis=1), np.cumsum(mass, axis=1)
    return slice(0, 1 + _closest(made[:, :-1], below[:, :-1], mix))


def _one(shares: Wide, mass: Wide, mix: Mixture) -> Rows:
    """All rows but the one without which the mixture comes closest."""
    below = shares.sum(axis=1, keepdims=True) - shares
    made = mass.sum(axis=1, keepdims=True) - mass
    kept = np.ones(shares.shape[1], bool)
    kept[_closest(made, below, mix)] = False
    return kept


def _closest(made: Wide, below: Wide, mix: Mixture) -> int:
    """Which of the sums, [heads, sets, dim] over [heads, sets], is nearest to the output."""
    mixed = made / np.maximum(below, 1e-30)[..., None]
    return int(np.abs(mixed - mix.output[:, None]).max(axis=(0, 2)).argmin())


def _solved(mix: Mixture, first: Places) -> Rows | None:
    """Rows with a weight, where the output determines the weights."""
    heads, count, dim = len(mix.values), len(first), mix.values.shape[2]
    if count > dim:
        return None
    none = np.ones(count, bool)
    for head in range(heads):
        values = mix.values[head, first]
        if np.linalg.cond(values) > 1e4:
            return None
        weights = np.linalg.lstsq(values.T, mix.output[head], rcond=None)[0]
        none &= np.abs(weights) < 1e-3 / count
    rows = np.zeros_like(mix.wanted)
    rows[first[~none]] = True
    return rows


def _more(mix: Mixture) -> Iterator[Rows]:
    """Sets with rows that should be hidden: padding, later ones, older ones, all."""
    wanted, places = mix.wanted, mix.places
    last = int(places[wanted].max())
    padding, later = places < mix.padding, places > last
    older = (places >= mix.padding) & (places < int(places[wanted].min()))
    for hidden in (padding, older, later):
        if hidden.any():
            yield wanted | hidden
    for ahead in range(1, min(int(later.sum()), _NEAR)):
        yield wanted | (later & (places <= last + ahead))
    first = int(places[wanted].min())
    for back in range(1, min(int(older.sum()), _NEAR)):
        yield wanted | (older & (places >= first - back))
    yield np.ones_like(wanted)
