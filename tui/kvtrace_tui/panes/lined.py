"""A widget made of lines: it keeps them, and knows which of them the terminal shows.

Textual asks for lines through `render_lines`; a screen that writes by itself asks for `lines`
and remembers in `painted` what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable

from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from kvtrace_tui.drawing.depth import Depth, depth_of


class Lined(Widget):
    """Base of panes and bars.

    Attributes:
        changed: Called when the lines are other ones; Textual's `refresh` when it is None.
        painted: The lines on the terminal; None when that is not known.
        depth: What the terminal can show; asked from the app when it is None.
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.changed: Callable[[Lined], None] | None = None
        self.painted: list[Strip] | None = None
        self.depth: Depth | None = None

    @property
    def terminal(self) -> Depth:
        """What the terminal can show."""
        if self.depth is None:
            self.depth = depth_of(self.app.console.color_system, no_color=self.app.no_color)
        return self.depth

    def lines(self) -> list[Strip]:
        """As many lines as the widget is high, each as wide as it is."""
        raise NotImplementedError

    def want_frame(self) -> None:
        """The lines are other ones: somebody must write them."""
        if self.changed is None:
            self.refresh()
        else:
            self.changed(self)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Lines of a region; they have their colours, so no style is applied."""
        strips = self.lines()[crop.y : crop.bottom]
        if crop.x == 0 and crop.width == self.size.width:
            return strips
        return [strip.crop(crop.x, crop.right) for strip in strips]
