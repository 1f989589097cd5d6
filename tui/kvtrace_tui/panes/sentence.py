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
            ways = [[(f"{here.sign} {words}", style)] for words in here.shorter]
        else:
            ways = _of_step(trace, cursor.step)
        return _marked(_longest([[*said, *way] for way in ways], width, height), width, height)


def _of_step(trace: Trace, number: int) -> list[list[Piece]]:
    """What a step did, whole and in ever fewer words."""
    found = phrases(trace, number)
    return [
        [(one.text, _INKS.get(one.lane, ink.TEXT)) for one in shortened(found, way)]
        for way in range(LAST_WAY + 1)
    ]


def _longest(ways: list[list[Piece]], width: int, height: int) -> list[Piece]:
    """The first of several ways to say a thing that fits; the last where none does."""
    return next((way for way in ways if len(wrapped(way, width)) <= height), ways[-1])


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
