"""Cache layers whose rows are copies of another's, made anew each step: one memory holds both.

Layers that share keys and values mostly repeat them for their heads first, each for itself. Where
fewer places hold rows than cache layers have them, the later ones of these hold nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kvtrace.record.cache.own.find_holder import LARGEST, held_digests
from kvtrace.record.cache.own.holders import Holder
from kvtrace.record.cache.own.seen_call import SeenCall
from kvtrace.record.cache.own.site_use import SiteUse
from kvtrace.record.match import Digests, digest


@dataclass(slots=True)
class Twins:
    """The cache layers of a forward so far."""

    _met: list[tuple[SiteUse, SeenCall]] = field(default_factory=list)
    _held: dict[tuple[int, int, torch.dtype], Digests] = field(default_factory=dict)

    def begin(self) -> None:
        """A forward is entered."""
        self._met.clear()
        self._held.clear()

    def meet(self, use: SiteUse, seen: SeenCall) -> None:
        """One that later ones may be copies of."""
        self._met.append((use, seen))

    def is_one(self, use: SiteUse, seen: SeenCall, rows: Tensor, around: Sequence[Holder]) -> bool:
        """Whether a cache layer holds nothing of its own.

        Args:
            use: What is known of it.
            seen: Its call.
            rows: Its values.
            around: All that may hold rows.
        """
        if use.values is None or not (use.keys or use.turned):
            return False
        alike = [
            other
            for other, earlier in self._met
            if earlier.store != seen.store
            and other.cached
            and not other.twin
            and all(map(np.array_equal, seen.digests, earlier.digests))
        ]
        return bool(alike) and 0 < self._copies(rows, use.values.rank, around) <= len(alike)

    def _copies(self, rows: Tensor, rank: int, around: Sequence[Holder]) -> int:
        """How many times places that are as lasting hold rows; 0: they do not, or it is too much.

        Args:
            rows: As attended to.
            rank: Of the places.
            around: They, and others.
        """
        places = [one for one in around if one.rank == rank and one.tensor.dtype == rows.dtype]
        if sum(one.tensor.numel() for one in places) > LARGEST:
            return 0
        held = np.concatenate([self._digests(rows, one.tensor) for one in places])
        wanted, own = np.unique(digest(rows[:1, :1])[0], return_counts=True)
        there, times = np.unique(held[np.isin(held, wanted)], return_counts=True)
        each = -(-times // own[np.searchsorted(wanted, there)])
        return int(each.max(initial=0))

    def _digests(self, rows: Tensor, tensor: Tensor) -> Digests:
        """Of what a tensor holds that may be rows like these; worked out once in a forward."""
        key = (id(tensor), rows.shape[3], rows.dtype)
        if key not in self._held:
            self._held[key] = held_digests(rows, tensor)
        return self._held[key]
