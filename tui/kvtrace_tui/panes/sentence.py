"""What the step did and saved, in one sentence, each number in the colour of its lane."""

from __future__ import annotations

from collections.abc import Hashable

from textual.strip import Strip

from kvtrace import text
from kvtrace.analysis.summary import WITHOUT_CACHE, phrases
from kvtrace.trace import CACHED, Trace
from kvtrace_tui.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line
from kvtrace_tui.panes.pane import Pane, wrapped

_INKS = {CACHED: ink.CACHED, WITHOUT_CACHE: ink.RECOMPUTED}


class SentencePane(Pane):
    """The sentence, wrapped to the lines there are; a banner of the trace stands before it."""

    grows = True

    def depends(self, cursor: Cursor) -> Hashable:
        """The step, and the lane whose time is compared."""
        return cursor.step, cursor.lane

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """What was cached in blue, what recomputing would have been in orange."""
        said: list[Piece] = [(" ", ink.TEXT)]
        if trace.meta.model.banner:
            said.append((f"{text.safe(trace.meta.model.banner)} · ", ink.WARN))
        if not trace.numbers:
            return [line(width, *said, ("nothing was recorded", ink.TEXT))]
        for phrase in phrases(trace, cursor.step, lane=cursor.lane):
            said.append((phrase.text, _INKS.get(phrase.lane, ink.TEXT)))
        return wrapped(said, width)
