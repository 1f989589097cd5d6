"""What the terminal can show: how many colours, and whether it knows more than ASCII."""

from __future__ import annotations

from enum import Enum


class Depth(Enum):
    """Colours of the terminal."""

    TRUE = "truecolor"
    XTERM = "256"
    ANSI = "16"
    NONE = "none"

    @property
    def levels(self) -> int:
        """Colour levels of a map: more would only make frames larger, or look the same."""
        return {Depth.TRUE: 32, Depth.XTERM: 16}.get(self, 9)

    @property
    def half_blocks(self) -> bool:
        """Whether a cell can hold two values, one above the other, by colour alone."""
        return self in (Depth.TRUE, Depth.XTERM)

    @property
    def per_line(self) -> int:
        """Values of a map that one line holds from top to bottom."""
        return 2 if self.half_blocks else 1


def depth_of(color_system: str | None, *, no_color: bool) -> Depth:
    """The depth for a Rich colour system ("truecolor", "256", "standard", "windows", None)."""
    if no_color or color_system is None:
        return Depth.NONE
    return {"truecolor": Depth.TRUE, "256": Depth.XTERM}.get(color_system, Depth.ANSI)
