"""What the copy of a trace had to leave out: told in lines, and as an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtrace.text import safe

if TYPE_CHECKING:
    from kvtrace.files.recover import Recovery

_SHOWN = 20


def told(done: Recovery, *, lead: str = "") -> int:
    """Print what is not in the copy, the first few one by one.

    Args:
        done: What was copied.
        lead: Stands before each.

    Returns:
        The exit code: 4 when something was lost.
    """
    for text in done.text[:_SHOWN]:
        print(f"  {lead}{safe(text, 1000)}")
    if len(done.text) > _SHOWN:
        print(f"  and {len(done.text) - _SHOWN} more")
    return 4 if done.lossy else 0
