"""Choices that rounding decides: other lanes are held to what the cached one chose.

A router or a sparse attention picks the highest of some scores. Where the last one picked and the
first one left out are closer than rounding, two lanes may pick otherwise, and everything after
that differs by far more than rounding: neither is wrong, and no cache is to blame. So wherever the
cached lane's choice is as good as a lane's own within rounding, the lane goes on with that one,
and the trace says so. A choice that rounding does not explain is the lane's own: it follows from a
difference before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.record.capture.replaced.by_token import by_token
from kvtrace.record.capture.replaced.choices import Choice
from kvtrace.trace import Note, Site

KEPT_BYTES = 1 << 28
"""Choices that are kept at most."""

_MOST_NOTES = 32
_SHOWN = 4

Key = tuple[str, int]
"""(module, how many selections it made before in the forward)."""


class Tie(Struct, frozen=True):
    """A choice that another lane would have made otherwise.

    Attributes:
        module: Whose code chose.
        options: How many there were.
        step, sequence, position: For which token.
        chosen: What only the cached lane chose, and what only the other.
        sizes: How far the scores are apart, and what rounding explains.
    """

    module: str
    options: int
    step: int
    sequence: int
    position: int
    chosen: tuple[tuple[int, ...], tuple[int, ...]]
    sizes: tuple[float, float]


@dataclass(slots=True)
class Ties:
    """What the cached lane chose, and where another lane was held to it.

    Attributes:
        tolerance: Relative difference that is rounding in the first layers.
        ties: By (module, number, step, sequence, row).
        dropped: From this step on choices were not kept any more; None: all were.
    """

    tolerance: float = 0.0
    ties: dict[tuple[object, ...], Tie] = field(default_factory=dict)
    dropped: int | None = None
    _kept: dict[int, dict[Key, Choice]] = field(default_factory=dict)
    _options: dict[Key, set[int]] = field(default_factory=dict)
    _bytes: int = 0

    def keep(self, step: int, sequences: int, new: int, choices: Sequence[Choice]) -> None:
        """What was chosen in a step of the cached lane."""
        if self.dropped is not None or not choices:
            return
        here: dict[Key, Choice] = {}
        for one in choices:
            rows = by_token(one.indices.to("cpu"), sequences, new)
            self._options.setdefault((one.module, one.number), set()).add(one.options)
            if rows is not None:
                here[one.module, one.number] = replace(one, indices=rows)
                self._bytes += rows.nbytes
        if self._bytes > KEPT_BYTES:
            self.dropped = step
            return
        if here:
            self._kept[step] = here

    def __bool__(self) -> bool:
        """Whether anything was chosen."""
        return bool(self._kept)

    def varies(self, key: Key) -> bool:
        """Whether there were not always as many options."""
        return len(self._options.get(key, ())) > 1

    def of(self, step: int, key: Key) -> Choice | None:
        """What was chosen there, with indices [sequences, new, parts, k]."""
        return self._kept.get(step, {}).get(key)

    def notes(self, sites: Sequence[Site]) -> Iterator[Note]:
        """One for each module that chose; each tie is told of once."""
        found: dict[str, list[Tie]] = {}
        for tie in self.ties.values():
            found.setdefault(tie.module, []).append(tie)
        self.ties.clear()
        for same in list(found.values())[:_MOST_NOTES]:
            first = min(same, key=lambda tie: (tie.step, tie.sequence, tie.position))
            site = nearest(first.module, sites)
            text = f"TIE: {_said(first, same)}"
            yield Note("finding", text, step=first.step, site=site, sequence=first.sequence)
        if self.dropped is not None:
            yield Note(
                "note",
                f"what was chosen (experts, slots) from step {self.dropped} on was too much to "
                "keep: where rounding decides, lanes may differ for no other reason",
            )


def nearest(module: str, sites: Sequence[Site]) -> int | None:
    """The site whose path has most in common with a module's."""

    def common(site: Site) -> int:
        parts = zip(site.module.split("."), module.split("."), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], parts)))

    return max(sites, key=common).index if module and sites else None


def _said(first: Tie, same: Sequence[Tie]) -> str:
    """A tie in words, and how many more there are."""
    cached, other = (_options(one) for one in first.chosen)
    what = f"picked {cached} of {first.options} with the cache and {other} without it"
    if not first.chosen[0]:
        what = f"put {first.options} options in another order with the cache than without it"
    more = f", there and {len(same) - 1} times more" if len(same) > 1 else ""
    return (
        f"{first.module or 'model'} {what} for the token at position {first.position}: the "
        f"scores are {first.sizes[0]:.2g} apart, and rounding explains {first.sizes[1]:.2g}; to "
        f"compare what follows, the other lane was held to the same choice{more}"
    )


def _options(chosen: Sequence[int]) -> str:
    """Their numbers."""
    names = ", ".join(map(str, chosen[:_SHOWN])) + (", …" if len(chosen) > _SHOWN else "")
    return f"option{'s' if len(chosen) > 1 else ''} {names}"
