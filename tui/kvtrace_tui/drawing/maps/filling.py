"""How the indices of an axis fill all the cells there are: some get a cell more than others.

How many indices there is room for changes seldom, so a row that is appended changes the last
cells only, and what was drawn stays where it was.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

_WIDEST = 12
_WIDEST_ZOOMED = 16


def room_for(count: int) -> int:
    """The capacity that a growing axis is drawn for: at most a fourth more than it holds."""
    if count <= 8:
        return count
    step = 1 << (count.bit_length() - 3)
    return -(-count // step) * step


class Filling(Struct, frozen=True):
    """Cells of one axis; `scale` cells stand for `per` indices.

    Attributes:
        first: First index shown.
        stop: One past the last index shown.
        scale, per: Index i begins at cell (i - first) · scale // per.
    """

    first: int
    stop: int
    scale: int
    per: int

    @classmethod
    def fit(
        cls, count: int, cells: int, *, grows: bool = False, zoom: int = 0, focus: int = 0
    ) -> Filling:
        """Show `count` indices in at most `cells` cells.

        Args:
            count: Length of the axis.
            cells: Room for it; 0 shows nothing.
            grows: Whether it gets longer from step to step.
            zoom: Doublings of the size of an index; 0 fits all of them.
            focus: Index that stays in view.
        """
        if count <= 0 or cells <= 0:
            return cls(0, 0, 1, 1)
        per = room_for(count) if grows else count
        scale = min(cells, per * _WIDEST)
        for _ in range(zoom):
            scale = min(scale * 2, per * min(cells, _WIDEST_ZOOMED))
        shown = max(cells * per // scale, 1)
        seen = window(count, shown, min(max(focus, 0), count - 1))
        return cls(seen.start, seen.stop, scale, per)

    @property
    def pools(self) -> bool:
        """Whether cells hold several indices."""
        return self.scale < self.per

    @property
    def cells(self) -> int:
        """Cells used."""
        shown = self.stop - self.first
        if not self.pools:
            return shown * self.scale // self.per
        return 0 if shown == 0 else (shown - 1) * self.scale // self.per + 1

    @property
    def bins(self) -> int:
        """Different values shown."""
        return self.cells if self.pools else self.stop - self.first

    def edges(self) -> NDArray[np.int64]:
        """First index of each bin, counted from `first`, and the end, [bins + 1]."""
        if not self.pools:
            return np.arange(self.bins + 1)
        edges = -(-np.arange(self.bins + 1) * self.per // self.scale)
        return np.minimum(edges, self.stop - self.first)

    def widths(self) -> NDArray[np.int64]:
        """Cells of each bin, [bins]."""
        if self.pools:
            return np.ones(self.bins, np.int64)
        return np.diff(np.arange(self.bins + 1) * self.scale // self.per)

    def cells_of(self, index: int) -> range:
        """The cells that show an index; empty when it is out of view."""
        if not self.first <= index < self.stop:
            return range(0)
        start = (index - self.first) * self.scale // self.per
        return range(start, max((index - self.first + 1) * self.scale // self.per, start + 1))

    def indices_of(self, cell: int) -> range:
        """The indices a cell shows; empty beyond the last."""
        if not 0 <= cell < self.cells:
            return range(0)
        if not self.pools:
            index = self.first + ((cell + 1) * self.per - 1) // self.scale
            return range(index, index + 1)
        start, stop = (-(-at * self.per // self.scale) for at in (cell, cell + 1))
        return range(self.first + start, min(self.first + stop, self.stop))

    @property
    def sizes(self) -> str:
        """Indices a cell stands for: "1", "2", "1–2"."""
        low = max(self.per // self.scale, 1)
        high = max(-(-self.per // self.scale), 1)
        return str(low) if low == high else f"{low}–{high}"


def window(count: int, shown: int, focus: int) -> range:
    """At most `shown` of `count` indices, one at least: moves by halves, keeps the focus inside."""
    shown = min(max(shown, 1), count)
    half = max(shown // 2, 1)
    first = min(max(focus // half * half - (shown - half) // 2, 0), count - shown)
    return range(first, first + shown)
