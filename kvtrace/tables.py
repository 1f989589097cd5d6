"""Columns of text, aligned. Knows nothing of what they say."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import category, east_asian_width


def width(text: str) -> int:
    """Terminal columns of a sanitised text: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1
        for char in text
    )


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of a table.

    Args:
        rows: Cells; rows may be of different lengths.
        right: Columns aligned to the right.
    """
    columns = max(map(len, rows), default=0)
    widths = [
        max((width(row[i]) for row in rows if i < len(row)), default=0) for i in range(columns)
    ]
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            pad = " " * (widths[i] - width(cell))
            cells.append(pad + cell if i in right else cell + pad)
        lines.append("  ".join(cells).rstrip())
    return lines


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A title with indented lines below it; nothing when there are none."""
    return ["", title, *(f"  {line}" for line in lines)] if lines else []
