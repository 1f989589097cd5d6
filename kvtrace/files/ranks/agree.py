"""Do the ranks tell of the same run? Which steps all of them have, and where they part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.files.reading.source import FileSource

_COMPARED = ("phase", "sequences", "new", "token", "chosen", "parent")
_WORDS = {
    "phase": "another phase",
    "sequences": "another number of sequences",
    "new": "another number of tokens",
    "token": "another token",
    "chosen": "another chosen token",
    "parent": "another step before it",
}
_MOST_NAMED = 20


class Agreement(Struct, frozen=True):
    """What the ranks have in common.

    Attributes:
        numbers: Steps that all of them have and tell alike.
        said: What is left out, and because of which rank.
    """

    numbers: tuple[int, ...]
    said: tuple[str, ...]


def agreement(ranks: Sequence[FileSource], *, closed: bool = False) -> Agreement:
    """Compare the overviews of all ranks.

    Args:
        ranks: In their order.
        closed: Nothing more will come: a rank without an end has stopped, it is not late.
    """
    said: list[str] = []
    overviews = [rank.overview() for rank in ranks]
    sets = [set(overview["number"].tolist()) for overview in overviews]
    common = np.array(sorted(set.intersection(*sets)), np.int64)
    common = common[: _together(ranks, overviews, common, said)]
    last = int(common[-1]) if len(common) else -1
    for rank, numbers in zip(ranks, sets, strict=True):
        gone = sorted(set.union(*sets) - numbers)
        holes = [number for number in gone if number < last]
        said += [f"step {number} is not in {rank.name}" for number in holes[:_MOST_NAMED]]
        late = [number for number in gone if number > max(numbers, default=-1)]
        if late and (closed or rank.ending is not None):
            said.append(f"{rank.name} ends before step {late[0]}: later steps are left out")
    return Agreement(tuple(common.tolist()), tuple(said))


def _together(
    ranks: Sequence[FileSource],
    overviews: Sequence[NDArray[np.void]],
    common: NDArray[np.int64],
    said: list[str],
) -> int:
    """How many of the common steps come before the first that two ranks tell differently."""
    rows = [one[np.searchsorted(one["number"], common)] for one in overviews]
    first, first_name = rows[0], ranks[0].name
    earliest, why = len(common), ""
    for rank, other in zip(ranks[1:], rows[1:], strict=True):
        for name in _COMPARED:
            known = (first[name] >= 0) & (other[name] >= 0) if name == "chosen" else True
            differs = np.flatnonzero((first[name] != other[name]) & known)
            if len(differs) and differs[0] < earliest:
                earliest = int(differs[0])
                here, there = first[name][earliest], other[name][earliest]
                why = (
                    f"step {common[earliest]}: {rank.name} has {_WORDS[name]} ({there}) than "
                    f"{first_name} ({here}): this step and later ones are left out"
                )
    if why:
        said.append(why)
    return earliest
