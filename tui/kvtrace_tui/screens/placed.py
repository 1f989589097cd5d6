"""A Textual layout that puts children where a pure function says."""

from __future__ import annotations

from collections.abc import Callable

from textual.geometry import Offset, Region, Size, Spacing
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.widget import Widget

from kvtrace_tui.arrangement import Boxes

_NONE = Spacing()
_HERE = Offset(0, 0)


class Placed(Layout):
    """Children by their id; those without a box are not drawn."""

    name = "placed"

    def __init__(self, boxes: Callable[[int, int], Boxes]) -> None:
        self._boxes = boxes

    def arrange(
        self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True
    ) -> ArrangeResult:
        """The placement of each child."""
        boxes = self._boxes(size.width, size.height)
        return [
            WidgetPlacement(Region(box.x, box.y, box.width, box.height), _HERE, _NONE, child)
            for child in children
            if (box := boxes.get(child.id or "")) is not None
        ]
