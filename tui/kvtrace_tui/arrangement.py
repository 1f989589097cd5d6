"""Where everything stands for a size of the terminal. Pure; knows no widgets.

Compact (under 100 columns or 30 lines) shows one pane at a time under the timeline; wide shows
all of them; very wide (180 columns) puts Q, K and V side by side. Too small shows a message.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

PANES = ("grid", "keys", "values", "queries", "attention", "inspector", "cost")
"""The panes that keys 1 to 7 show."""

LEAST = (40, 12)
"""Columns and lines under which nothing useful fits."""

_NARROW, _GAP, _LEAST_MAP = 16, 1, 40
_WHOLE_SENTENCE, _OF_SEVERAL = 150, 190
"""Columns that the sentence of a step needs to stand on one line, of one sequence or several."""


class SizeClass(StrEnum):
    """How much fits."""

    TINY = "tiny"
    COMPACT = "compact"
    WIDE = "wide"
    VERY_WIDE = "very wide"


class Box(Struct, frozen=True):
    """A place on the screen, in cells."""

    x: int
    y: int
    width: int
    height: int


Boxes = dict[str, Box]


def size_class(width: int, height: int) -> SizeClass:
    """The class of a terminal."""
    if width < LEAST[0] or height < LEAST[1]:
        return SizeClass.TINY
    if width < 100 or height < 30:
        return SizeClass.COMPACT
    return SizeClass.VERY_WIDE if width >= 180 else SizeClass.WIDE


def arrange(
    width: int,
    height: int,
    shown: str,
    *,
    maximised: bool = False,
    layers: int = 12,
    sequences: int = 0,
    foot: int = 1,
) -> Boxes:
    """The box of every part that is shown.

    Args:
        width: Columns of the terminal.
        height: Its lines.
        shown: The pane that a compact screen shows, or that is maximised.
        maximised: That pane alone, below the status line.
        layers: Rows of the layer × head grid.
        sequences: Lines that the timeline would need to show how sequences part.
        foot: Lines of the footer: what is said there may be long.
    """
    kind = size_class(width, height)
    if kind is SizeClass.TINY:
        return {"small": Box(0, 0, width, height)}
    height -= foot - 1
    boxes = {"status": Box(0, 0, width, 1), "footer": Box(0, height - 1, width, foot)}
    if maximised:
        boxes[shown] = Box(0, 1, width, height - 2)
        return boxes
    if kind is SizeClass.COMPACT:
        return boxes | _compact(width, height, shown)
    sentence = 1 if width >= (_OF_SEVERAL if sequences else _WHOLE_SENTENCE) else 2
    boxes["sentence"] = Box(0, 1, width, sentence)
    timeline = 4 + min(sequences, max((height - 28) // 4, 0))
    boxes["timeline"] = Box(0, 1 + sentence, width, timeline)
    cost = min(max(height // 5, 7 - sentence), 11)
    boxes["cost"] = Box(0, height - 1 - cost, width, cost)
    top = 1 + sentence + timeline
    middle = Box(0, top, width, height - 1 - top - cost)
    left, right = _columns(width)
    boxes |= _sides(middle, layers, left, right)
    centre = Box(left + _GAP, middle.y, width - left - right - 2 * _GAP, middle.height)
    if kind is SizeClass.VERY_WIDE:
        return boxes | _abreast(centre)
    return boxes | _stacked(centre, shown)


def _columns(width: int) -> tuple[int, int]:
    """Widths of what stands left and right of the maps."""
    if width < 140:
        return 28, 30
    return (32, 38) if width < 200 else (34, 44)


def _compact(width: int, height: int, shown: str) -> Boxes:
    lines = 2 if height >= 20 else 1
    timeline = 4 if height >= 16 else 0
    boxes = {"sentence": Box(0, 1, width, lines)}
    top = 1 + lines
    if timeline:
        boxes["timeline"] = Box(0, top, width, timeline)
        top += timeline
    boxes["tabs"] = Box(0, top, width, 1)
    boxes[shown] = Box(0, top + 1, width, height - top - 2)
    return boxes


def _sides(middle: Box, layers: int, left: int, right: int) -> Boxes:
    grid = min(max(layers + 3, 6), max(middle.height - 13, middle.height // 2))
    x = middle.x + middle.width - right
    return {
        "grid": Box(0, middle.y, left, grid),
        "inspector": Box(0, middle.y + grid, left, middle.height - grid),
        "attention": Box(x, middle.y, right, middle.height),
    }


def _stacked(centre: Box, shown: str) -> Boxes:
    """Q beside K, and the output beside V: the pairs that share their features.

    Where there is no room beside, Q or the output takes V's place while it is asked for.
    """
    upper = (centre.height + 1) // 2
    lower = centre.height - upper
    wide, x = centre.width - _NARROW - _GAP, centre.x + _NARROW + _GAP
    if wide < _LEAST_MAP:
        below = shown if shown in ("queries", "output") else "values"
        return {
            "keys": Box(centre.x, centre.y, centre.width, upper),
            below: Box(centre.x, centre.y + upper, centre.width, lower),
        }
    return {
        "queries": Box(centre.x, centre.y, _NARROW, upper),
        "keys": Box(x, centre.y, wide, upper),
        "output": Box(centre.x, centre.y + upper, _NARROW, lower),
        "values": Box(x, centre.y + upper, wide, lower),
    }


def _abreast(centre: Box) -> Boxes:
    """Q, K, V and the output side by side."""
    narrow = _NARROW if centre.width < 140 else _NARROW + 6
    wide = (centre.width - 2 * narrow - 3 * _GAP) // 2
    boxes, x = {}, centre.x
    for name, width in (("queries", narrow), ("keys", wide), ("values", wide)):
        boxes[name] = Box(x, centre.y, width, centre.height)
        x += width + _GAP
    boxes["output"] = Box(x, centre.y, centre.x + centre.width - x, centre.height)
    return boxes
