"""Where the head looks: rows by weight with their exact weights, and the crosshair's neighbours."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache

from rich.cells import cell_len
from textual.strip import Strip

from kvtrace import units
from kvtrace.analysis.attending import attends
from kvtrace.analysis.heads.attention import Attention, attention
from kvtrace.trace import CACHED, Tensor, Trace, stands_for_none
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import bar
from kvtrace_tui.drawing.lines import Piece, elided, line, padded
from kvtrace_tui.drawing.tokens import shown_token
from kvtrace_tui.panes.pane import Pane, wrapped
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.views import NOT_HERE

_WEIGHT = 8
_NEIGHBOURS = 9


def _of_another_lane(cursor: Cursor) -> bool:
    """Whether the maps show more than the cached lane."""
    return cursor.view.needs_lane or cursor.base != CACHED


class AttentionPane(Pane):
    """A list of rows, the strongest first; below it the rows around the crosshair in order."""

    of_layers = True
    spots = ("_rows",)

    def __init__(self, shelf: Shelf, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._shelf = shelf
        self._rows: dict[int, int] = {}

    def depends(self, cursor: Cursor) -> Hashable:
        """The query, its head, and the crosshair's row."""
        return (
            cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.query, cursor.row,
            _of_another_lane(cursor),
        )  # fmt: skip

    def name_line(self, width: int) -> list[Strip]:
        """Its name."""
        return [self.title_line(width, "attention")]

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Title, summary, strongest rows, neighbours."""
        where = cursor.step, cursor.layer, cursor.head, cursor.sequence
        store = self._shelf.of(trace)
        if not attends(trace, cursor.step, cursor.layer):
            lines = [self.title_line(width, "attention", f"L{cursor.layer} H{cursor.head}")]
            return [*lines, *wrapped([(NOT_HERE, ink.WARN)], width)]
        keys = store.head(*where[:2], Tensor.KEYS, *where[2:])
        found = store.answered(
            ("attention", *where, cursor.query),
            0 if keys is None else len(keys),
            lambda: attention(trace, *where, cursor.query, keys=keys),
        )
        lane = "cached " if _of_another_lane(cursor) else ""  # its weights all the same
        about, word = f"{lane}L{cursor.layer} H{cursor.head}", ""
        if found.query_token >= 0:
            word = shown_token(trace.token_text(found.query_token), 12)
            about = f"{about} of {found.query_position} {word}"
        lines = [self.title_line(width, "attention", about), *_summary(found, word, width)]
        self._rows = {}
        room = height - len(lines)
        below = min(_NEIGHBOURS, found.weights.size) if room >= 2 * _NEIGHBOURS else 0
        above = room - (below + 1 if below else 0)
        high = float(found.weights.max(initial=0)) or 1.0
        top = found.top(above)
        if not below and cursor.row not in top and top and cursor.row < found.weights.size:
            top[-1] = cursor.row
        for row in top:
            self._rows[len(lines)] = row
            lines.append(_row(trace, found, row, cursor.row, (width, high)))
        if below:
            lines += [line(width, fill=ink.TEXT)] * (above - len(top))
            lines.append(line(width, (" around the crosshair ", ink.TITLE_DIM), fill=ink.TITLE_DIM))
            start = min(max(cursor.row - below // 2, 0), found.weights.size - below)
            for row in range(start, start + below):
                self._rows[len(lines)] = row
                lines.append(_row(trace, found, row, cursor.row, (width, high)))
        return lines

    def pointed(self, x: int, y: int) -> Mapping[str, int]:
        """The row listed in a line."""
        return {"row": self._rows[y]} if y in self._rows else {}


def _row(trace: Trace, found: Attention, row: int, chosen: int, scale: tuple[int, float]) -> Strip:
    """Position, token, bar, exact weight."""
    width, high = scale
    position, token = int(found.positions[row]), int(found.tokens[row])
    weight = float(found.weights[row])
    word = "padding" if position < 0 else ""
    if stands_for_none(position):
        word = "no token"
    if token >= 0 and not word:
        word = shown_token(trace.token_text(token), 16)
    value = units.weight(weight) if found.seen[row] else "masked"
    return _listed(position, word, value, weight / high, (row == chosen, width))


@lru_cache(2048)
def _listed(position: int, word: str, weight: str, part: float, place: tuple[bool, int]) -> Strip:
    """The line of one row: its place in the list does not matter, so that it is made once."""
    here, width = place
    names = min(max((width - _WEIGHT - 8) // 2, 4), 14)
    bars = max(width - _WEIGHT - names - 9, 0)
    lead = ink.SELECTED if here else ink.DIM
    number = "" if position < 0 else str(position)
    return line(
        width,
        (padded(number, 6, right=True) + " ", lead),
        (padded(word, names), ink.SELECTED if here else ink.TOKEN),
        (" " + bar(part, bars), ink.CACHED),
        (padded(weight, _WEIGHT, right=True), ink.STRONG if here else ink.TEXT),
    )


def _summary(found: Attention, asking: str, width: int) -> list[Strip]:
    """Entropy; the weight on a sink, and on what followed the asking token before, if any."""
    seen = int(found.seen.sum())
    hidden = found.weights.size - seen
    words: list[Piece] = [
        (" entropy ", ink.DIM), (f"{found.entropy:.2f}", ink.TEXT),
        (f" bits of {units.counted(seen, 'row')}", ink.DIM),
    ]  # fmt: skip
    if hidden:
        words.append((f", {hidden} masked", ink.DIM))
    rows = [words]
    if found.sink_share > 0:
        rows.append([(" sink ", ink.DIM), (units.weight(found.sink_share), ink.WARN)])
    if found.induction > 0 or found.same_token > 0:
        lead, share = " after an earlier ", f" {units.weight(found.induction)}"
        word = padded(asking, min(cell_len(asking), width - len(lead) - len(share)))
        rows.append([(lead, ink.DIM), (word or "self", ink.TOKEN), (share, ink.TEXT)])
    return [line(width, *elided(row, width)) for row in rows]
