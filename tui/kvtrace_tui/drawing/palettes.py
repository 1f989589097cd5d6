"""Colours for values: diverging for signed data, sequential for unsigned.

PuOr is by Cynthia Brewer (colorbrewer2.org); cividis by Nuñez, Anderton and Renslow (2018),
viridis by Smith and van der Walt (2015). All keep their order with colour-vision deficiency.
"Dusk" is PuOr's idea on a dark ground: zero recedes, both signs glow.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

_PUOR = "2d004b 542788 8073ac b2abd2 d8daeb f7f7f7 fee0b6 fdb863 e08214 b35806 7f3b08"
_DUSK = "c4e4ff 86bfee 4a8fc7 2b5f8d 1d3851 171d26 4d3321 8a5327 c47d33 eeb15c ffe3b0"
_CIVIDIS = "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838"
_VIRIDIS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
_GREY_SIGNED = "ffffff b5b5b5 767676 3d3d3d 1a1a1a 3d3d3d 767676 b5b5b5 ffffff"
_GREY = "141414 3a3a3a 626262 8c8c8c b8b8b8 e4e4e4"

_STEPS = (0, 95, 135, 175, 215, 255)


class Palette(Struct, frozen=True):
    """Names and control colours, low to high.

    Attributes:
        name: As printed.
        signed: Control colours for data around zero, "rrggbb" separated by spaces.
        unsigned: Control colours for data from zero up.
    """

    name: str
    signed: str
    unsigned: str

    def colours(self, levels: int, *, signed: bool) -> NDArray[np.uint8]:
        """Evenly spaced colours, [levels, 3], interpolated in sRGB."""
        return _interpolated(self.signed if signed else self.unsigned, levels)


PALETTES = (
    Palette("PuOr · cividis", _PUOR, _CIVIDIS),
    Palette("dusk · viridis", _DUSK, _VIRIDIS),
    Palette("grey", _GREY_SIGNED, _GREY),
)
"""What `Cursor.palette` counts."""


@lru_cache(64)
def _interpolated(controls: str, levels: int) -> NDArray[np.uint8]:
    points = np.array([list(bytes.fromhex(code)) for code in controls.split()], np.float64)
    at = np.linspace(0, len(points) - 1, levels)
    known = np.arange(len(points))
    channels = [np.interp(at, known, points[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def xterm(red: int, green: int, blue: int) -> int:
    """The nearest of xterm's colour cube and grey ramp (squared distance in sRGB)."""
    cube = [min(range(6), key=lambda i, c=channel: abs(_STEPS[i] - c))  # type: ignore[misc]
            for channel in (red, green, blue)]  # fmt: skip
    grey = min(max(round(((red + green + blue) / 3 - 8) / 10), 0), 23)

    def distance(colour: tuple[int, int, int]) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, (red, green, blue), strict=True))

    near = distance((_STEPS[cube[0]], _STEPS[cube[1]], _STEPS[cube[2]]))
    if near <= distance((8 + 10 * grey,) * 3):
        return 16 + 36 * cube[0] + 6 * cube[1] + cube[2]
    return 232 + grey
