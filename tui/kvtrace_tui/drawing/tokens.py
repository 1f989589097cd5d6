"""The strip of tokens: what was read and written, with the current one in sight."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from msgspec import Struct
from rich.cells import cell_len
from rich.style import Style

from kvtrace import text
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece

_BEFORE = 0.6
_LONGEST = 18


@lru_cache(8192)
def shown_token(raw: str, limit: int) -> str:
    """A token as it is shown, made safe once."""
    return text.token(raw, limit)


class TokenStrip(Struct, frozen=True):
    """A drawn strip.

    Attributes:
        pieces: Pieces of the line.
        spans: (first cell, end cell, index of the token) for each token shown.
    """

    pieces: tuple[Piece, ...]
    spans: tuple[tuple[int, int, int], ...]

    def token_at(self, x: int) -> int | None:
        """The index of the token at a cell."""
        return next((index for start, end, index in self.spans if start <= x < end), None)


def token_strip(
    texts: Sequence[str], current: int, width: int, rejected: Collection[int] = ()
) -> TokenStrip:
    """As many tokens around the current one as fit, most of them before it.

    Args:
        texts: Raw token texts; they are made safe here.
        current: Index of the token that stands out; -1: none.
        width: Cells.
        rejected: Indices of tokens that were given up; those after the current one recede.
    """
    shown = _window(texts, current, width)
    pieces: list[Piece] = []
    spans: list[tuple[int, int, int]] = []
    x = 0
    for index in shown:
        one = shown_token(texts[index], _LONGEST)
        style = ink.CHOSEN if index == current else _style(index, current, rejected)
        pieces += [(one, style), ("│", ink.FAINT)]
        size = cell_len(one)
        spans.append((x, x + size, index))
        x += size + 1
    return TokenStrip(tuple(pieces), tuple(spans))


def _style(index: int, current: int, rejected: Collection[int]) -> Style:
    if index in rejected:
        return ink.REJECTED
    return ink.FUTURE if index > current >= 0 else ink.TOKEN


def _window(texts: Sequence[str], current: int, width: int) -> range:
    """Indices to show: back from the current token over 60 % of the width, then on to its end."""
    if not texts or width <= 0:
        return range(0)
    at = min(max(current, 0), len(texts) - 1)

    def size(index: int) -> int:
        return cell_len(shown_token(texts[index], _LONGEST)) + 1

    start, used = at, size(at)
    while start > 0 and used + size(start - 1) <= width * _BEFORE:
        start -= 1
        used += size(start)
    stop = at + 1
    while stop < len(texts) and used < width:
        used += size(stop)
        stop += 1
    while start > 0 and used + size(start - 1) <= width:
        start -= 1
        used += size(start)
    return range(start, stop)
