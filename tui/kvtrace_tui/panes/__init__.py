"""Panes: widgets that show one thing each, given a trace and a cursor. No pane knows another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrace_tui.panes.pane import Pane


def all_panes() -> Iterator[Sequence[Pane]]:
    """One of each, with the ids that arrangements know them by: those of the first picture first.

    That is the run and its cache. The others load and read more; nothing of them is loaded before
    they are asked for.
    """
    from kvtrace.trace import Tensor
    from kvtrace_tui.panes.rows import Shelf
    from kvtrace_tui.panes.tensor_map import MapPane
    from kvtrace_tui.panes.timeline import TimelinePane

    shelf = Shelf()
    yield (
        TimelinePane(id="timeline"),
        MapPane(Tensor.KEYS, shelf, id="keys"),
        MapPane(Tensor.VALUES, shelf, id="values"),
    )

    from kvtrace_tui.panes.attention import AttentionPane
    from kvtrace_tui.panes.cost import CostPane
    from kvtrace_tui.panes.grid import GridPane
    from kvtrace_tui.panes.inspector import InspectorPane
    from kvtrace_tui.panes.sentence import SentencePane

    yield (
        MapPane(Tensor.QUERIES, shelf, id="queries"),
        MapPane(Tensor.OUTPUT, shelf, id="output"),
        SentencePane(id="sentence"),
        GridPane(shelf, id="grid"),
        AttentionPane(shelf, id="attention"),
        InspectorPane(shelf, id="inspector"),
        CostPane(id="cost"),
    )
