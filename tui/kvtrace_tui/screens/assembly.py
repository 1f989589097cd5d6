"""All panes of the main screen, by the ids that the arrangement knows."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace.trace import Tensor
from kvtrace_tui.panes.attention import AttentionPane
from kvtrace_tui.panes.pane import Pane
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.sentence import SentencePane
from kvtrace_tui.panes.tensor_map import MapPane
from kvtrace_tui.panes.timeline import TimelinePane


def all_panes() -> Sequence[Pane]:
    """New panes; the maps share what they read."""
    shelf = Shelf()
    return (
        SentencePane(id="sentence"),
        TimelinePane(id="timeline"),
        MapPane(Tensor.QUERIES, shelf, id="queries"),
        MapPane(Tensor.KEYS, shelf, id="keys"),
        MapPane(Tensor.OUTPUT, shelf, id="output"),
        MapPane(Tensor.VALUES, shelf, id="values"),
        AttentionPane(id="attention"),
    )
