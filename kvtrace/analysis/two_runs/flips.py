"""What modules of two runs chose otherwise for the same tokens: another expert, mostly.

Where two options are equal within rounding, runs that round otherwise may pick either, and all that
follows differs by far more than rounding. Rounding turns few choices: where a module chooses
otherwise for many tokens, something else is the reason. Knows no scores: they are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from kvtrace.analysis.two_runs.align import Fed, Pair
from kvtrace.trace import Picks, Site, Step, Trace

_FEW = 4
"""One in so many tokens, at most."""

_SHOWN = 4

Key = tuple[str, int]
"""Module, and how many selections it made before."""


class Flip(Struct, frozen=True):
    """A choice of two runs that is not the same.

    Attributes:
        position: Of the token.
        layer: Whose module chose; what attends in a later one may follow from it.
        module: It.
        options: How many there were.
        old, new: What only one of the runs picked.
        few: It is one of few, as rounding makes them.
        step: Of the new run.
    """

    position: int
    layer: int
    module: str
    options: int
    old: tuple[int, ...]
    new: tuple[int, ...]
    few: bool
    step: int

    @property
    def said(self) -> str:
        """It, in words."""
        return (
            f"{self.module} picked {_named(self.old)} of {self.options} in the old run and "
            f"{_named(self.new)} in the new one for the token at position {self.position}"
        )


class Flips(Struct, frozen=True):
    """All of one sequence, layer by layer, in each by position."""

    every: tuple[Flip, ...] = ()

    def ties(self, layer: int) -> Flip | None:
        """The first token's, of those before a layer that rounding may have made."""
        here = (one for one in self.every if one.few and one.layer < layer)
        return min(here, key=lambda one: one.position, default=None)

    def before(self, layer: int, position: int) -> Flip | None:
        """One that a difference of a token may follow from."""
        here = (one for one in self.every if one.layer < layer and one.position <= position)
        return next(here, None)


def flips(old: Trace, new: Trace, pair: Pair) -> Flips:
    """What was chosen otherwise for the tokens that both runs of a sequence were fed."""
    picked = _picked(old, new, pair)
    placed = [(_layer(key[0], new.meta.sites), key) for key in picked]
    found: list[Flip] = []
    clean = max(pair.shared, default=-1) + 1  # tokens before: nothing follows from another choice
    for layer in sorted({layer for layer, _ in placed if layer is not None}):
        here: list[Flip] = []
        for at, key in placed:
            if at == layer:
                here += _of_module(picked[key], layer, clean, new, pair)
        found += here
        clean = min([clean, *(one.position for one in here)])
    return Flips(tuple(found))


_Both = dict[int, tuple[Picks, int, Picks, int]]
"""Position to the choice and the number of the token in it, of the old run and the new one."""


def _picked(old: Trace, new: Trace, pair: Pair) -> dict[Key, _Both]:
    out: dict[Key, _Both] = {}
    for position in pair.shared:
        mine, theirs = (
            dict(_choices(trace.step(path[position].step), path[position]))
            for trace, path in ((old, pair.old), (new, pair.new))
        )
        for key in mine:
            if key in theirs and mine[key][0].options == theirs[key][0].options:
                out.setdefault(key, {})[position] = (*mine[key], *theirs[key])
    return out


def _choices(step: Step, fed: Fed) -> Iterator[tuple[Key, tuple[Picks, int]]]:
    token = fed.sequence * step.new + fed.row
    for one in step.picks:
        yield (one.module, one.number), (one, token)


def _of_module(both: _Both, layer: int, clean: int, new: Trace, pair: Pair) -> Iterator[Flip]:
    """Where one module chose otherwise, of the tokens that no other choice is behind."""
    apart: list[tuple[int, Picks, frozenset[int], frozenset[int]]] = []
    asked = 0
    for position, (mine, at, theirs, there) in both.items():
        if position >= clean:
            continue
        asked += 1
        one, other = mine.picked(at), theirs.picked(there)
        if one != other:
            apart.append((position, mine, one - other, other - one))
    few = len(apart) <= max(1, asked // _FEW)
    for position, mine, one, other in apart:
        step = pair.new[position].step
        picks = tuple(sorted(one)), tuple(sorted(other))
        yield Flip(position, layer, mine.module, mine.options, *picks, few, step)


def _layer(module: str, sites: Sequence[Site]) -> int | None:
    """The layer of a module, as the paths of what attends number them; None: not known."""
    parts = module.split(".")
    for site in sites:
        path = site.module.split(".")
        if str(site.layer) in path:
            at = path.index(str(site.layer))
            if path[:at] == parts[:at] and len(parts) > at and parts[at].isdecimal():
                return int(parts[at])
    return None


def _named(picked: Sequence[int]) -> str:
    names = ", ".join(map(str, picked[:_SHOWN])) + (", …" if len(picked) > _SHOWN else "")
    return f"option{'s' if len(picked) > 1 else ''} {names}" if picked else "nothing else"
