"""The layer × head grid: one number for each head of each layer, as a coloured table."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from kvtrace.trace.dtypes import Floats
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.maps.filling import Filling
from kvtrace_tui.drawing.maps.heat import Look, glyphs_of
from kvtrace_tui.drawing.maps.heatstrip import Painter, heat_strip, painter
from kvtrace_tui.drawing.maps.pool import pooled

_MARK = "◆"
_HEAD = 6
_NOT_RUN = "·"


class GridLayout(Struct, frozen=True):
    """Where layers and heads stand.

    Attributes:
        down: Bins of layers, one line each.
        across: Bins of heads; a head is up to `_HEAD` cells wide.
        gutter: Cells of the layer labels at the left.
    """

    down: Filling
    across: Filling
    gutter: int

    @classmethod
    def fit(
        cls, layers: int, heads: int, size: tuple[int, int], mark: tuple[int, int]
    ) -> GridLayout:
        """Layers × heads in (width, height), the line of head labels included."""
        gutter = len(str(max(layers - 1, 0))) + 1
        down = Filling.fit(layers, min(max(size[1] - 1, 1), max(layers, 1)), focus=mark[0])
        room = max(size[0] - gutter, 1)
        across = Filling.fit(heads, min(room, max(heads, 1) * _HEAD), focus=mark[1])
        return cls(down, across, gutter)

    def at(self, x: int, y: int) -> tuple[int, int] | None:
        """The (layer, head) at a cell; the first of its bin."""
        rows, heads = self.down.indices_of(y - 1), self.across.indices_of(x - self.gutter)
        return (rows.start, heads.start) if rows and heads else None


def layer_grid(
    values: Floats,
    layout: GridLayout,
    look: Look,
    mark: tuple[int, int],
    *,
    run_until: int | None = None,
    flagged: Collection[tuple[int, bool]] = (),
) -> list[Strip]:
    """Head labels, then a line for each bin of layers.

    Args:
        values: [layers, heads]; NaN: nothing to show.
        layout: Where they stand.
        look: How they are painted.
        mark: The (layer, head) of the cursor.
        run_until: Layers after this one have not run yet.
        flagged: Layers with something to say, and whether they say it now; ✗ beside the layer.
    """
    paint = painter(look.palette, look.depth, signed=look.shade.signed)
    shown = pooled(values, layout.down, layout.across)
    levels = look.shade.levels(shown, paint.levels)
    lines = [_head_labels(layout, mark[1])]
    for y in range(layout.down.bins):
        layers = layout.down.indices_of(y)
        selected = mark[0] in layers
        name = str(layers.start)
        name = name[: layout.gutter - 1].rjust(layout.gutter - 1)
        gutter = Segment(name, ink.STRONG if selected else ink.DIM), _flag(layers, flagged)
        waiting = run_until is not None and layers.start > run_until
        chosen = layout.across.cells_of(mark[1]) if selected else range(0)
        lines.append(_layers(gutter, levels[y].tobytes(), layout.across, chosen, look, waiting))
    return lines


@lru_cache(1024)
def _layers(
    gutter: tuple[Segment, ...],
    shown: bytes,
    across: Filling,
    chosen: range,
    look: Look,
    waiting: bool,
) -> Strip:
    """The line of a bin of layers: one that was drawn before is the same object.

    Args:
        gutter: What stands before the cells.
        shown: Level of every bin, as uint8.
        across: How wide the bins are.
        chosen: Cells of the cursor's head.
        look: How they are painted.
        waiting: These layers have not run yet.
    """
    paint = painter(look.palette, look.depth, signed=look.shade.signed)
    levels = np.frombuffer(shown, np.uint8)
    special = chosen or waiting or levels.max(initial=0) >= paint.levels
    if look.depth.half_blocks and not special:
        keys = np.repeat(levels.astype(np.uint16) * 257, across.widths())
        return heat_strip(keys, paint, Strip(gutter))
    return Strip([*gutter, *_cells(levels, across, chosen, (paint, look), waiting)])


def _flag(layers: range, flagged: Collection[tuple[int, bool]]) -> Segment:
    """Beside a layer that something was found in: bright where it is this step's."""
    if any((layer, True) in flagged for layer in layers):
        return Segment("✗", ink.BAD)
    if any((layer, False) in flagged for layer in layers):
        return Segment("✗", ink.FAINT)
    return Segment(" ", ink.DIM)


@lru_cache(256)
def _head_labels(layout: GridLayout, head: int) -> Strip:
    """Numbers of the heads above the grid, as many as fit; the cursor's one always."""
    width = layout.gutter + layout.across.cells
    row = [" "] * width
    chosen = layout.across.cells_of(head)
    spots = [(chosen.start, head)] if chosen else []
    spots += [(cell, layout.across.indices_of(cell).start)
              for cell in _starts(layout.across)]  # fmt: skip
    style = [ink.DIM] * width
    for cell, number in spots:
        text, start = str(number), layout.gutter + cell
        span = range(max(start - 1, 0), min(start + len(text) + 1, width))
        if start + len(text) > width or any(row[x] != " " for x in span):
            continue
        for offset, letter in enumerate(text):
            row[start + offset] = letter
            style[start + offset] = ink.STRONG if number == head else ink.DIM
    return Strip(Segment.simplify(Segment(t, s) for t, s in zip(row, style, strict=True)), width)


def _cells(
    levels: NDArray[np.uint8],
    across: Filling,
    chosen: range,
    paints: tuple[Painter, Look],
    waiting: bool,
) -> list[Segment]:
    paint, look = paints
    segments: list[Segment] = []
    spans = zip(levels.tolist(), _starts(across), across.widths().tolist(), strict=True)
    for level, start, width in spans:
        segments.append(_cell(level, width, start in chosen, paint, look, waiting))
    return segments


def _starts(across: Filling) -> list[int]:
    """First cell of every bin."""
    widths = across.widths()
    starts: list[int] = (np.cumsum(widths) - widths).tolist()
    return starts


def _cell(
    level: int, stretch: int, here: bool, paint: Painter, look: Look, waiting: bool
) -> Segment:
    missing = level == paint.levels or waiting
    if here:
        text = _MARK.center(stretch) if stretch > 1 else _MARK
        return Segment(text, _mark_style(level, paint, missing, look.depth))
    if missing:
        return Segment(_NOT_RUN.center(stretch), ink.FAINT)
    if look.depth.half_blocks:
        return Segment(" " * stretch, paint.style((level << 8) | level))
    return Segment(glyphs_of(look.shade.signed)[level] * stretch, ink.TEXT)


def _mark_style(level: int, paint: Painter, missing: bool, depth: Depth) -> Style:
    """Black or white, whichever can be read on the cell's colour."""
    if missing or not depth.half_blocks:
        return ink.CHOSEN
    ground = paint.style((level << 8) | level)
    colour = ground.bgcolor
    triplet = None if colour is None else colour.get_truecolor()
    bright = triplet is not None and 2 * triplet.red + 5 * triplet.green + triplet.blue > 8 * 128
    return Style(color="#000000" if bright else "#ffffff", bgcolor=colour, bold=True)
