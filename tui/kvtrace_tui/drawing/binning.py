"""Columns of equal width over the steps of a run: pooled, one to one, or stretched.

Bins start at multiples of their size and the size changes seldom, so a step that is appended
changes the last bin only, and what was drawn stays where it was.
"""

from __future__ import annotations

from msgspec import Struct

_STRETCHES = (12, 8, 6, 4, 3, 2, 1)


class Binning(Struct, frozen=True):
    """Cells of one axis.

    Attributes:
        stop: One past the last index shown.
        per_cell: Indices in each cell; 1 when stretched.
        stretch: Cells for each index; 1 when pooled.
    """

    stop: int
    per_cell: int
    stretch: int

    @classmethod
    def fit(cls, count: int, cells: int) -> Binning:
        """Show `count` indices in at most `cells` cells.

        Args:
            count: Length of the axis.
            cells: Room for it; 0 shows nothing.
        """
        if count <= 0 or cells <= 0:
            return cls(0, 1, 1)
        per_cell = -(-count // cells)
        stretch = next(s for s in _STRETCHES if s * count <= cells or s == 1)
        return cls(count, per_cell, stretch)

    @property
    def bins(self) -> int:
        """Number of bins shown."""
        return -(-self.stop // self.per_cell)

    @property
    def cells(self) -> int:
        """Cells used."""
        return self.bins * self.stretch

    def cells_of(self, index: int) -> range:
        """The cells that show an index; empty when it is out of view."""
        if not 0 <= index < self.stop:
            return range(0)
        start = index // self.per_cell * self.stretch
        return range(start, start + self.stretch)

    def indices_of(self, cell: int) -> range:
        """The indices a cell shows; empty beyond the last."""
        start = cell // self.stretch * self.per_cell
        if cell < 0 or start >= self.stop:
            return range(0)
        return range(start, min(start + self.per_cell, self.stop))
