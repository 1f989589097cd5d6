"""The heat map: values, bins for both axes and a shade in; lines out.

With colours a cell holds two values, one above the other. Without, a glyph stands for one value:
lighter to denser for positive ones, other signs for negative ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from kvtrace.trace.dtypes import Floats
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.lines import length
from kvtrace_tui.drawing.maps.filling import Filling
from kvtrace_tui.drawing.maps.heatstrip import Painter, heat_strip, painter
from kvtrace_tui.drawing.maps.pool import pooled
from kvtrace_tui.drawing.palettes import Palette
from kvtrace_tui.drawing.shade import Shade

Levels = NDArray[np.uint8]
Sides = tuple[Sequence[Strip], Strip | None]
_BARE: Sides = ((), None)

_NEGATIVE = "#=~-"
_POSITIVE = "░▒▓█"
_SIGNED_GLYPHS = _NEGATIVE + "·" + _POSITIVE
_UNSIGNED_GLYPHS = " ·:-=░▒▓█"
_BAR = 12
_ABSENT, _NOT_FINITE, _CROSSHAIR = " ", "!", "◆"


class Look(Struct, frozen=True):
    """How a map is painted.

    Attributes:
        palette: Colours.
        depth: What the terminal can show.
        shade: How values become levels.
        absent_nan: NaN means "not recorded", as in a lane that was not kept; else it is trouble.
    """

    palette: Palette
    depth: Depth
    shade: Shade
    absent_nan: bool = False


def heat_map(
    values: Floats,
    down: Filling,
    across: Filling,
    look: Look,
    mark: tuple[int, int] | None = None,
    sides: Sides = _BARE,
) -> list[Strip]:
    """A map, as wide and high as its bins need, with what stands beside it.

    Args:
        values: [down, across], the whole axes.
        down: Bins from top to bottom, made for `depth.per_line` cells a line.
        across: Bins from left to right.
        look: How it is painted.
        mark: Indices (down, across) under the crosshair.
        sides: What stands left of each line, and right of every line.
    """
    paint = painter(look.palette, look.depth, signed=look.shade.signed)
    levels = _levels(pooled(values, down, across), look, paint)
    levels = np.repeat(np.repeat(levels, down.widths(), axis=0), across.widths(), axis=1)
    if not look.depth.half_blocks:
        lines = _glyph_lines(levels, look, _marked(down, across, mark))
        return [_beside(line, y, sides) for y, line in enumerate(lines)]
    _draw_crosshair(levels, paint, down, across, mark)
    if levels.shape[0] % 2:
        levels = np.vstack([levels, np.full_like(levels[-1:], paint.absent)])
    keys = (levels[0::2].astype(np.uint16) << 8) | levels[1::2]
    before, after = sides
    return [
        heat_strip(row, paint, before[y] if before else None, after) for y, row in enumerate(keys)
    ]


def _beside(strip: Strip, y: int, sides: Sides) -> Strip:
    before, after = sides
    found = [*before[y : y + 1], strip, *([] if after is None else [after])]
    return Strip.join(found) if len(found) > 1 else strip


def glyphs_of(signed: bool) -> str:
    """The glyph of each level where colours can't say it, lowest first."""
    return _SIGNED_GLYPHS if signed else _UNSIGNED_GLYPHS


def legend(look: Look, width: int) -> list[tuple[str, Style]]:
    """A colour bar with the ends of the range, as pieces of a line."""
    if look.depth.half_blocks:
        bar = _colour_bar(look.palette, look.depth, look.shade.signed, width)
        return [*bar, (f" {look.shade.label}", ink.DIM)]
    glyphs = glyphs_of(look.shade.signed)
    return [(f"{glyphs} {look.shade.label}", ink.DIM)]


def legend_line(look: Look, pooling: str, width: int, *, narrow: bool) -> list[tuple[str, Style]]:
    """The colour bar, its range and what a cell stands for, as pieces of a line.

    Args:
        look: How the map is painted.
        pooling: What a cell stands for; empty: for one value.
        width: Cells there are.
        narrow: The bar gives way to the words.
    """
    shade, words = look.shade, pooling.replace(" of ", " ")
    if not narrow:
        bar = legend(look, _BAR if width >= _BAR * 6 else _BAR // 2)
        return [*bar, (f" {words} " if pooling else " ", ink.DIM)]
    bins = pooling.rpartition(" ")[2]
    brief = f" {shade.brief} {bins}"
    longer = (f" {shade.label} {words}", f" {shade.label} {bins}")
    return [(next((one for one in longer if cell_len(one) <= width), brief), ink.DIM)]


def legend_beside(pieces: list[tuple[str, Style]], room: int) -> list[tuple[str, Style]]:
    """What fits beside a number: the bar goes first, then what a cell stands for, not the range."""
    shorter = (pieces, pieces[-2:], pieces[-2:-1])
    return next((one for one in shorter if length(one) <= room), shorter[-1])


@lru_cache(64)
def _colour_bar(
    palette: Palette, depth: Depth, signed: bool, width: int
) -> tuple[tuple[str, Style], ...]:
    paint = painter(palette, depth, signed=signed)
    at = np.linspace(0, paint.levels - 1, width).round().astype(int).tolist()
    return tuple(("▀", paint.style((level << 8) | level)) for level in at)


def _levels(values: Floats, look: Look, paint: Painter) -> Levels:
    levels = look.shade.levels(values, paint.levels)
    bad = levels == paint.levels
    if not bad.any():
        return levels
    kind = np.isnan(values) if look.absent_nan else np.zeros(values.shape, bool)
    levels[bad] = paint.bad
    levels[kind] = paint.absent
    return levels


def _marked(
    down: Filling, across: Filling, mark: tuple[int, int] | None
) -> tuple[range, range] | None:
    if mark is None:
        return None
    rows, columns = down.cells_of(mark[0]), across.cells_of(mark[1])
    return (rows, columns) if rows and columns else None


def _draw_crosshair(
    levels: Levels, paint: Painter, down: Filling, across: Filling, mark: tuple[int, int] | None
) -> None:
    """A small mark becomes white beside black; a large one gets a white frame with black edges."""
    found = _marked(down, across, mark)
    if found is None:
        return
    rows, columns = found
    if len(rows) >= 4 and len(columns) >= 4:
        box = levels[rows.start : rows.stop, columns.start : columns.stop]
        box[0], box[-1] = paint.bright, paint.bright
        box[:, 0], box[:, -1] = paint.bright, paint.bright
        return
    levels[rows.start : rows.stop, columns.start : columns.stop] = paint.bright
    if len(rows) == 1:
        partner = rows.start ^ 1
        if partner < levels.shape[0]:
            levels[partner, columns.start : columns.stop] = paint.dark


def _glyph_lines(levels: Levels, look: Look, mark: tuple[range, range] | None) -> list[Strip]:
    signed = look.shade.signed
    glyphs = glyphs_of(signed) + _ABSENT + _NOT_FINITE
    lines = []
    for y, row in enumerate(levels.tolist()):
        text = "".join(glyphs[level] for level in row)
        segments = _coloured_runs(text, row, signed, look.depth)
        strip = Strip(segments, len(text))
        if mark is not None and y in mark[0]:
            left, width = mark[1].start, len(mark[1])
            star = Segment(_CROSSHAIR * width, ink.fitting(ink.CHOSEN, look.depth))
            end = strip.cell_length
            pieces = [strip.crop(0, left), Strip([star], width), strip.crop(left + width, end)]
            strip = Strip.join(pieces)
        lines.append(strip)
    return lines


def _coloured_runs(text: str, row: list[int], signed: bool, depth: Depth) -> list[Segment]:
    """Glyphs in the colour of their sign; in one piece where there are no colours."""
    if depth is Depth.NONE or not signed:
        return [Segment(text, ink.fitting(ink.TEXT, depth))] if text else []
    middle = len(_NEGATIVE)
    segments: list[Segment] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or (row[end] < middle) != (row[start] < middle):
            style = ink.NEGATIVE if row[start] < middle else ink.POSITIVE
            segments.append(Segment(text[start:end], style))
            start = end
    return segments
