"""The one sanitiser for foreign strings.

Tokens, model names, error texts and file contents pass through `safe` before they reach a
terminal, HTML, SVG or a log. What comes out is printable, stays on one line, and cannot move
the cursor, change direction or grow without bound. It is not markup-escaped: never build markup
from data.
"""

from __future__ import annotations

import unicodedata

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MAX_MARKS = 4
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {
    0x7F: "\u2421",
    0x0A: "⏎",
    0x09: "⇥",
}


def _shown(char: str) -> str:
    """A visible stand-in for one unsafe character; the character itself when it is safe."""
    code = ord(char)
    if code in _PICTURES:
        return _PICTURES[code]
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    if selector or unicodedata.category(char) in _UNSAFE_CATEGORIES:
        return f"⟨{code:04X}⟩"
    return char


def safe(text: str, limit: int = 200) -> str:
    """Make any string safe to show on one line.

    Args:
        text: Anything, lone surrogates included.
        limit: At most this many characters of `text` are shown; `…` says more were there.

    Returns:
        Control characters as their pictures (newline `⏎`, tab `⇥`, ESC `␛`), other invisible or
        unassigned ones as ⟨hex⟩, at most 4 combining marks on one letter.
    """
    if text.isascii() and text.isprintable():
        return text if len(text) <= limit else text[:limit] + "…"
    out: list[str] = []
    marks = 0
    for char in text[:limit]:
        shown = _shown(char)
        if shown == char and unicodedata.category(char) in ("Mn", "Me"):
            marks += 1
            if not out:
                out.append("◌")
            if marks > _MAX_MARKS:
                continue
        else:
            marks = 0
        out.append(shown)
    if len(text) > limit:
        out.append("…")
    return "".join(out)


def token(text: str, limit: int = 24) -> str:
    """A token as shown in strips and tables: a leading space becomes `·`, emptiness `∅`."""
    if not text:
        return "∅"
    stripped = text.lstrip(" ")
    return "·" * min(len(text) - len(stripped), 4) + safe(stripped, limit)


def safe_lines(text: str, max_lines: int, limit: int) -> list[str]:
    """A foreign text of several lines, each made safe; the rest is counted, not shown."""
    lines = text.splitlines()
    shown = [safe(line, limit) for line in lines[:max_lines]]
    if len(lines) > max_lines:
        shown.append(f"… {len(lines) - max_lines} more lines")
    return shown


def message(error: BaseException) -> str:
    """The message of an exception; empty where asking for it raises another one."""
    try:
        return str(error)
    except Exception:
        return ""


def said_by(error: BaseException, limit: int = 300) -> str:
    """An exception on one line, safe to show: its name, and the lines of its message joined.

    Args:
        error: It.
        limit: As `safe` takes it.
    """
    lines = (line.strip() for line in message(error).splitlines())
    return safe(f"{type(error).__name__}: {' '.join(filter(None, lines))}".rstrip(": "), limit)
