"""The few styles everything is drawn with: calm, and readable with colour-vision deficiency.

Cached is blue and recomputed orange everywhere; a colour never says alone what a word or a sign
does not say too. Every style names its background, so that lines need no other styling.
"""

from __future__ import annotations

from colorsys import rgb_to_hls
from functools import lru_cache

from rich.color import Color
from rich.style import Style

from kvtrace_tui.drawing.depth import Depth

PAPER = "#0f141b"
RAISED = "#18202b"
SUNK = "#222b38"


def _ink(colour: str, paper: str = PAPER, *, bold: bool = False) -> Style:
    return Style(color=colour, bgcolor=paper, bold=bold or None)


TEXT = _ink("#c9d4e1")
STRONG = _ink("#f1f5fa", bold=True)
DIM = _ink("#7b899b")
FAINT = _ink("#465264")
ACCENT = _ink("#f2b84b", bold=True)
TOKEN = _ink("#e3cf9b")
CACHED = _ink("#62b5e5")
RECOMPUTED = _ink("#e39a56")
NEGATIVE = _ink("#b39ddb")
POSITIVE = _ink("#f0a35e")
GOOD = _ink("#7fc8a9")
WARN = _ink("#f2b84b", bold=True)
BAD = _ink("#ff7a85", bold=True)

BAR = _ink("#c9d4e1", RAISED)
BAR_STRONG = _ink("#f1f5fa", RAISED, bold=True)
BAR_DIM = _ink("#8795a8", RAISED)
BAR_KEY = _ink("#f2b84b", RAISED, bold=True)
BAR_GOOD = _ink("#7fc8a9", RAISED, bold=True)
BAR_WARN = _ink("#f2b84b", RAISED, bold=True)
BAR_BAD = _ink("#ff7a85", RAISED, bold=True)

TITLE = _ink("#9fb0c4", RAISED)
TITLE_FOCUSED = _ink("#10151c", "#f2b84b", bold=True)
TITLE_DIM = _ink("#7b899b", RAISED)

CHOSEN = _ink("#10151c", "#f2b84b", bold=True)
SELECTED = _ink("#f1f5fa", "#2f435c", bold=True)
FUTURE = _ink("#566374")
REJECTED = Style(color="#b0646c", bgcolor=PAPER, strike=True)

_HUES = (20, 1), (70, 3), (170, 2), (208, 6), (255, 4), (340, 5), (361, 1)
"""Where a hue ends, in degrees, and its number: red, yellow, green, cyan, blue, magenta, red."""

_PAPERS = frozenset(Color.parse(name).get_truecolor() for name in (PAPER, RAISED, SUNK))


@lru_cache(4096)
def without_colour(style: Style | None) -> Style:
    """The same emphasis without colour: a coloured background becomes reverse video."""
    if style is None:
        return Style(bold=False)
    lit = style.bgcolor is not None and style.bgcolor.get_truecolor() not in _PAPERS
    return Style(
        bold=bool(style.bold),
        underline=style.underline,
        strike=style.strike,
        reverse=True if lit else style.reverse,
        meta=style.meta or None,
    )


@lru_cache(4096)
def in_sixteen(style: Style | None) -> Style:
    """The same in the 16 colours every terminal has; the nearest ones turn orange into red."""
    if style is None:
        return Style(color="white", bgcolor="black")
    colour, paper = (
        None if one is None else Color.from_ansi(_sixteenth(one))
        for one in (style.color, style.bgcolor)
    )
    return style + Style.from_color(colour, paper)


def _sixteenth(colour: Color) -> int:
    """Number of the colour of that hue: 0 black to 7 grey, 8 more are their bright ones."""
    parts = colour.get_truecolor().normalized
    hue, lightness, _ = rgb_to_hls(*parts)
    if lightness < 0.2:
        return 0
    if max(parts) - min(parts) < 0.15:
        return 8 if lightness < 0.7 else 7 if lightness < 0.9 else 15
    number = next(number for end, number in _HUES if hue * 360 < end)
    return number + 8 if lightness > 0.5 else number


def fitting(style: Style | None, depth: Depth) -> Style | None:
    """The style as this terminal can show it."""
    if depth is Depth.NONE:
        return without_colour(style)
    return in_sixteen(style) if depth is Depth.ANSI else style
