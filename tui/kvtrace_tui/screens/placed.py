"""Where the parts of a screen stand: a Textual layout that asks a pure function."""

from __future__ import annotations

from collections.abc import Callable

from textual.geometry import Offset, Region, Size, Spacing
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.widget import Widget

from kvtrace.trace import Trace
from kvtrace_tui.arrangement import Boxes, arrange
from kvtrace_tui.desk.desk import Desk
from kvtrace_tui.screens.bars import said_in

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


class Places:
    """The boxes of the main screen, for its size and what the desk shows."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._made: tuple[tuple[object, ...], Boxes] | None = None

    def boxes(self, width: int, height: int) -> Boxes:
        """For the present focus and trace; the same object until something of these changes."""
        desk = self._desk
        layers = 12 if desk.trace is None else len(desk.trace.meta.sites)
        shown = desk.focus if desk.maximised else desk.shown
        sequences = _sequences(desk.trace)
        foot = len(said_in(desk.message, width)) or 1
        key = (width, height, shown, desk.maximised, layers, sequences, foot)
        if self._made is None or self._made[0] != key:
            boxes = arrange(
                width,
                height,
                shown,
                maximised=desk.maximised,
                layers=layers,
                sequences=sequences,
                foot=foot,
            )
            self._made = key, boxes
        return self._made[1]


def _sequences(trace: Trace | None) -> int:
    """Most sequences of any step, where there are several; else 0."""
    most = 0 if trace is None else int(trace.overview["sequences"].max(initial=0))
    return most if most > 1 else 0
