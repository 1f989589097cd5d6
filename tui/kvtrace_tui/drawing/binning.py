"""How the indices of an axis fall into cells: pooled, one to one, or stretched.

Bins start at multiples of their size and the size changes seldom, so a row that is appended
changes the last bin only, and what was drawn stays where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

_STRETCHES = (12, 8, 6, 4, 3, 2, 1)


@dataclass(frozen=True, slots=True)
class Binning:
    """Cells of one axis.

    Attributes:
        first: First index shown.
        stop: One past the last index shown.
        per_cell: Indices in each cell; 1 when stretched.
        stretch: Cells for each index; 1 when pooled.
    """

    first: int
    stop: int
    per_cell: int
    stretch: int

    @classmethod
    def fit(cls, count: int, cells: int, *, zoom: int = 0, focus: int = 0) -> Binning:
        """Show `count` indices in at most `cells` cells.

        Args:
            count: Length of the axis.
            cells: Room for it; 0 shows nothing.
            zoom: Doublings of the size of an index; 0 fits all of them.
            focus: Index that stays in view.
        """
        if count <= 0 or cells <= 0:
            return cls(0, 0, 1, 1)
        per_cell = -(-count // cells)
        stretch = next(s for s in _STRETCHES if s * count <= cells or s == 1)
        for _ in range(zoom):
            if per_cell > 1:
                per_cell = -(-per_cell // 2)
            else:
                stretch = min(stretch * 2, cells, 16)
        shown = max(cells // stretch, 1) * per_cell
        first = _window(count, shown, per_cell, min(max(focus, 0), count - 1))
        return cls(first, min(first + shown, count), per_cell, stretch)

    @property
    def bins(self) -> int:
        """Number of bins shown."""
        return -(-(self.stop - self.first) // self.per_cell)

    @property
    def cells(self) -> int:
        """Cells used."""
        return self.bins * self.stretch

    @property
    def whole(self) -> bool:
        """Whether the axis starts at its first index; its end is `stop`."""
        return self.first == 0

    def cells_of(self, index: int) -> range:
        """The cells that show an index; empty when it is out of view."""
        if not self.first <= index < self.stop:
            return range(0)
        start = (index - self.first) // self.per_cell * self.stretch
        return range(start, start + self.stretch)

    def indices_of(self, cell: int) -> range:
        """The indices a cell shows; empty beyond the last."""
        start = self.first + cell // self.stretch * self.per_cell
        if cell < 0 or start >= self.stop:
            return range(0)
        return range(start, min(start + self.per_cell, self.stop))


def _window(count: int, shown: int, per_cell: int, focus: int) -> int:
    """Where a window of `shown` indices starts: it jumps by halves and keeps the focus inside."""
    if shown >= count:
        return 0
    half = max(shown // 2 // per_cell, 1) * per_cell
    first = max(focus // half * half - (shown - half) // 2 // per_cell * per_cell, 0)
    last = -(-(count - shown) // per_cell) * per_cell
    return min(first, last)
