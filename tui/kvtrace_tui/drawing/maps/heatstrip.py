"""A line of a heat map that goes to the terminal as one run-length coded string.

Segments would cost a Style and two escape sequences per cell. This Strip renders itself from two
colour levels per cell and makes Segments only when somebody asks for them: when another widget
covers a part, for filters, and for screenshots. It leans on private attributes of Strip; where
they are not what it expects, `heat_strip` returns a plain Strip that looks the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.palettes import Palette, xterm

UPPER = "▀"
_RESET = "\x1b[0m"
_SPECIALS = ("2a323e", "ff3fd0", "000000", "ffffff")

Keys = NDArray[np.uint16]


class Painter(dict[int, str]):
    """Colours of one palette: what to write before a run of cells of one key.

    A key is the level of the upper half · 256 + the level of the lower half. After the levels come
    four more: absent, not finite, and the dark and bright halves of the crosshair.
    """

    def __init__(self, palette: Palette, depth: Depth, *, signed: bool) -> None:
        super().__init__()
        self.levels = depth.levels
        self.depth = depth
        special = [tuple(bytes.fromhex(code)) for code in _SPECIALS]
        colours = [tuple(c) for c in palette.colours(self.levels, signed=signed).tolist()]
        self._colours: list[tuple[int, ...]] = colours + special
        self._styles: dict[int, Style] = {}

    @property
    def absent(self) -> int:
        """Level of what was not recorded."""
        return self.levels

    @property
    def bad(self) -> int:
        """Level of NaN and Inf."""
        return self.levels + 1

    @property
    def dark(self) -> int:
        """Level of the crosshair's dark half."""
        return self.levels + 2

    @property
    def bright(self) -> int:
        """Level of the crosshair's bright half."""
        return self.levels + 3

    def __missing__(self, key: int) -> str:
        upper, lower = self._colours[key >> 8], self._colours[key & 255]
        if self.depth is Depth.TRUE:
            text = "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*upper, *lower)
        else:
            text = f"\x1b[38;5;{xterm(*upper)};48;5;{xterm(*lower)}m"
        self[key] = text
        return text

    def style(self, key: int) -> Style:
        """The same as a Style."""
        if key not in self._styles:
            upper, lower = (self._colour(level) for level in (key >> 8, key & 255))
            self._styles[key] = Style(color=upper, bgcolor=lower)
        return self._styles[key]

    def _colour(self, level: int) -> Color:
        red, green, blue = self._colours[level]
        if self.depth is Depth.TRUE:
            return Color.from_rgb(red, green, blue)
        return Color.from_ansi(xterm(red, green, blue))


@cache
def painter(palette: Palette, depth: Depth, *, signed: bool) -> Painter:
    """The painter of a palette; its strings are made once."""
    return Painter(palette, depth, signed=signed)


def _runs(keys: Keys) -> Iterator[tuple[int, int]]:
    """Key and length of each run of equal cells."""
    cells, start = keys.tolist(), 0
    ends = ((keys[1:] != keys[:-1]).nonzero()[0] + 1).tolist()
    for end in (*ends, len(cells)):
        yield cells[start], end - start
        start = end


def _written(keys: Keys, paint: Painter) -> str:
    """Cells as the terminal gets them."""
    if not keys.size:
        return ""
    return "".join([paint[key] + UPPER * length for key, length in _runs(keys)]) + _RESET


def _same(one: Strip | None, other: Strip | None) -> bool:
    return one is other or (one is not None and one == other)


def _segments(keys: Keys, paint: Painter) -> list[Segment]:
    if keys.size == 0:
        return []
    return [Segment(UPPER * length, paint.style(key)) for key, length in _runs(keys)]


class HeatStrip(Strip):
    """Half-block cells, with plain segments before and after them."""

    __slots__ = ("_after", "_before", "_keys", "_made", "_paint")

    def __init__(
        self, keys: Keys, paint: Painter, before: Strip | None = None, after: Strip | None = None
    ) -> None:
        """Take the keys of the cells, [cells], and what stands beside them."""
        self._keys, self._paint = keys, paint
        self._before, self._after = before, after
        sides = sum(side.cell_length for side in (before, after) if side is not None)
        super().__init__((), keys.size + sides)
        self._made: list[Segment] | None = None

    @property
    def _segments(self) -> list[Segment]:
        if self._made is None:
            before = [] if self._before is None else list(self._before)
            after = [] if self._after is None else list(self._after)
            self._made = before + _segments(self._keys, self._paint) + after
        return self._made

    @_segments.setter
    def _segments(self, value: Iterable[Segment]) -> None:
        # Strip's constructor assigns; ours are made when asked for
        self._made = None

    def render(self, console: Console) -> str:
        """The line as the terminal gets it."""
        if self._render_cache is None:
            cells = _written(self._keys, self._paint)
            before = "" if self._before is None else self._before.render(console)
            after = "" if self._after is None else self._after.render(console)
            self._render_cache = f"{before}{cells}{after}"
        return self._render_cache

    def since(self, old: HeatStrip, console: Console) -> tuple[int, str]:
        """Where to write what, in a line of the same width that shows `old`; nothing: "" ."""
        if self._paint is not old._paint or not _same(self._before, old._before):
            return 0, self.render(console)
        keys, shared = self._keys, min(self._keys.size, old._keys.size)
        apart = (keys[:shared] != old._keys[:shared]).nonzero()[0]
        start = 0 if self._before is None else self._before.cell_length
        if keys.size == old._keys.size and _same(self._after, old._after):
            if not apart.size:
                return 0, ""
            first, end = int(apart[0]), int(apart[-1]) + 1
            return start + first, _written(keys[first:end], self._paint)
        first = int(apart[0]) if apart.size else shared
        after = "" if self._after is None else self._after.render(console)
        return start + first, f"{_written(keys[first:], self._paint)}{after}"

    def divide(self, cuts: Iterable[int]) -> Sequence[Strip]:
        """Cut at cell positions; whole when nothing covers the line."""
        inside = [cut for cut in cuts if cut <= self.cell_length]
        return [self] if inside == [self.cell_length] else super().divide(inside)

    def extend_cell_length(self, cell_length: int, style: Style | None = None) -> Strip:
        """Fill with spaces up to a width."""
        missing = cell_length - self.cell_length
        if missing <= 0:
            return self
        return self.between(None, Strip([Segment(" " * missing, style)], missing))

    def between(self, before: Strip | None, after: Strip | None) -> HeatStrip:
        """The same cells with more beside them."""
        left = _glued(before, self._before)
        return HeatStrip(self._keys, self._paint, left, _glued(self._after, after))


def _glued(first: Strip | None, second: Strip | None) -> Strip | None:
    if first is None or second is None:
        return first or second
    return Strip.join([first, second])


def joined(strips: Sequence[Strip]) -> Strip:
    """Lines side by side as one; a map among them stays fast."""
    maps = [index for index, strip in enumerate(strips) if isinstance(strip, HeatStrip)]
    if len(maps) != 1:
        return Strip.join(strips)
    at = maps[0]
    heat = strips[at]
    before = Strip.join(strips[:at]) if at else None
    after = Strip.join(strips[at + 1 :]) if at + 1 < len(strips) else None
    return heat.between(before, after) if isinstance(heat, HeatStrip) else heat


def plain_strip(
    keys: Keys, paint: Painter, before: Strip | None = None, after: Strip | None = None
) -> Strip:
    """The same line as an ordinary Strip."""
    sides = [side for side in (before, after) if side is not None]
    width = keys.size + sum(side.cell_length for side in sides)
    left = [] if before is None else list(before)
    right = [] if after is None else list(after)
    return Strip([*left, *_segments(keys, paint), *right], width)


@cache
def contract_holds() -> bool:
    """Whether Strip still is what `HeatStrip` leans on; asked once."""
    try:
        keys = np.array([0, 0, 1, 258], np.uint16)
        paint = Painter(Palette("probe", "000000 ffffff", "000000 ffffff"), Depth.TRUE, signed=True)
        fast, plain = HeatStrip(keys, paint), plain_strip(keys, paint)
        pieces = fast.divide([1, 4])
        return (
            list(fast) == list(plain)
            and fast.cell_length == 4
            and fast.text == plain.text
            and [piece.cell_length for piece in pieces] == [1, 3]
            and fast.crop(1, 3).text == plain.crop(1, 3).text
            and UPPER * 2 in fast.render(Console())
        )
    except Exception:
        return False


def heat_strip(
    keys: Keys, paint: Painter, before: Strip | None = None, after: Strip | None = None
) -> Strip:
    """A line of a map, fast where that is possible."""
    make = HeatStrip if contract_holds() else plain_strip
    return make(keys, paint, before, after)
