"""What the step did and saved, in one sentence, each number in the colour of its lane."""

from __future__ import annotations

from collections.abc import Hashable

from textual.strip import Strip

from kvtrace import text
from kvtrace.analysis.summary import LAST_WAY, WITHOUT_CACHE, phrases, shortened
from kvtrace.trace import CACHED, Trace
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line
from kvtrace_tui.panes.pane import Pane, wrapped

_INKS = {CACHED: ink.CACHED, WITHOUT_CACHE: ink.RECOMPUTED}


class SentencePane(Pane):
    """The sentence, wrapped to the lines there are; a banner of the trace stands before it."""

    grows = True
    speaks = True

    def depends(self, cursor: Cursor) -> Hashable:
        """The step, and the layer that a finding may be about."""
        return cursor.step, cursor.layer if self.found else -1

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """What was found here; else what was cached in blue, and without a cache in orange."""
        said: list[Piece] = [(" ", ink.TEXT)]
        if trace.meta.model.banner:
            said.append((f"{text.safe(trace.meta.model.banner)} · ", ink.WARN))
        if not trace.numbers:
            return [line(width, *said, ("nothing was recorded", ink.TEXT))]
        here = next((one for one in self.found if one.here(cursor.step, cursor.layer)), None)
        if here is not None and here.stops:
            style = ink.BAD if here.grave else ink.WARN
            return _marked([*said, (f"{here.sign} {here.sentence}", style)], width, height)
        found = phrases(trace, cursor.step)
        for way in range(LAST_WAY + 1):
            told = [
                *said,
                *((one.text, _INKS.get(one.lane, ink.TEXT)) for one in shortened(found, way)),
            ]
            if len(wrapped(told, width)) <= height:
                break
        return _marked(told, width, height)


def _marked(pieces: list[Piece], width: int, height: int) -> list[Strip]:
    """As many words as there is room for; `…` stands for the rest, which other panes have."""
    lines, kept = wrapped(pieces, width), list(pieces)
    while len(lines) > height and kept:
        words, style = kept.pop()
        shorter = words.rstrip().rpartition(" ")[0]
        if shorter:
            kept.append((shorter, style))
        lines = wrapped([*kept, (" …", ink.TEXT)], width)
    return lines
