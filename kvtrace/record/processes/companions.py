"""The other ranks of a model that several processes run: do they record too, and do they go on?

A forward of such a model needs all ranks. One that computed the other lanes alone would wait for
ever, so all of them say whether they could, through the store they met by, and do what the first
one decides. Recording itself asks nobody anything.
"""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic, sleep

import torch.distributed as dist

from kvtrace.trace import Rank

PATIENCE_S = 20.0
"""How long the others may take to come to the same place."""

_NAMED: dict[str, int] = {}


class Companions:
    """The ranks that share one model, as one of them sees the others."""

    def __init__(self, path: Path, rank: Rank, patience_s: float = PATIENCE_S) -> None:
        """Leave word that this rank records.

        Args:
            path: Of the trace; ranks call it alike, but for their own number.
            rank: This process.
            patience_s: How long to wait for the others.
        """
        name = re.sub(rf"(?<!\d){dist.get_rank()}(?!\d)", "#", path.stem)
        _NAMED[name] = _NAMED.get(name, -1) + 1
        self._key = f"kvtrace/{rank.replica}/{name}/{_NAMED[name]}"
        self._rank, self._patience_s, self._turn = rank, patience_s, 0
        self._parted = False
        self._store = dist.distributed_c10d._get_default_store()
        self._store.set(f"{self._key}/{rank.number}", "begun")

    def agree(self, *, ready: bool = True) -> bool:
        """Whether all ranks are here and ready; the same answer for each of them.

        After a no it stays no: the ranks no longer do the same.
        """
        if self._parted:
            return False
        here = f"{self._key}/turn{self._turn}"
        self._turn += 1
        self._store.set(f"{here}/{self._rank.number}", "ready" if ready else "gone")
        wish = "go" if ready and self._all_ready(here) else "no"
        # the first wish counts: whoever lost patience and whoever came late do the same
        said = self._store.compare_set(f"{here}/said", "", wish)
        self._parted = said != b"go"
        return not self._parted

    def _all_ready(self, here: str) -> bool:
        """Wait for the others, unless one of them never began to record."""
        numbers = range(self._rank.size)
        if not self._store.check([f"{self._key}/{number}" for number in numbers]):
            return False
        keys = [f"{here}/{number}" for number in numbers]
        end = monotonic() + self._patience_s
        while not self._store.check(keys):
            if monotonic() > end or self._store.check([f"{here}/said"]):
                return False
            sleep(0.01)
        return all(self._store.get(key) == b"ready" for key in keys)
