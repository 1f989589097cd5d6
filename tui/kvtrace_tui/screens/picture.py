"""A picture of the screen as one SVG file that needs no network."""

from __future__ import annotations

import re
from pathlib import Path

_FONT = re.compile(r"@font-face\s*\{[^}]*\}", re.DOTALL)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def standalone(svg: str) -> str:
    """The same picture without web fonts and without characters that XML has not."""
    return _NOT_XML.sub("\ufffd", _FONT.sub("", svg))


def save(svg: str, folder: Path, stem: str) -> Path:
    """Write it under a name that is not taken.

    Raises:
        OSError: It can't be written.
    """
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "kvtrace"
    text = standalone(svg)
    for number in range(1, 10_000):
        path = folder / (f"{clean}.svg" if number == 1 else f"{clean}-{number}.svg")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{clean}.svg and 9998 more exist")
