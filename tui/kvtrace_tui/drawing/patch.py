"""From the lines a terminal shows to other ones, with as few bytes as that takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from textual.strip import Strip

from kvtrace_tui.drawing.maps.heatstrip import HeatStrip


def patch(
    corner: tuple[int, int],
    before: Sequence[Strip] | None,
    after: Sequence[Strip],
    console: Console,
) -> str:
    """What to write so that the lines `after` are shown.

    Args:
        corner: Column and line of the first cell, from 0.
        before: What is shown there now, as many lines of the same width; None: not known.
        after: What is to be shown.
        console: Says how styles are written.
    """
    x, y = corner
    if before is None or len(before) != len(after):
        return "".join(f"{_to(x, y + at)}{line.render(console)}" for at, line in enumerate(after))
    written: list[str] = []
    for at, (old, new) in enumerate(zip(before, after, strict=True)):
        if new is old:
            continue
        start, text = _since(old, new, console)
        if text:
            written.append(f"{_to(x + start, y + at)}{text}")
    return "".join(written)


def _since(old: Strip, new: Strip, console: Console) -> tuple[int, str]:
    """The first cell that is different, and what to write there; nothing where none is."""
    heat = isinstance(new, HeatStrip)
    if old.cell_length != new.cell_length or heat is not isinstance(old, HeatStrip):
        return 0, new.render(console)
    if isinstance(new, HeatStrip) and isinstance(old, HeatStrip):
        return new.since(old, console)
    return (0, "") if new == old else (0, new.render(console))


def _to(x: int, y: int) -> str:
    return f"\x1b[{y + 1};{x + 1}H"
