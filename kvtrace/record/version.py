"""How often a tensor was changed in place."""

from __future__ import annotations


def version(tensor: object) -> int:
    """Counts changes in place; inference tensors don't count, and say -1."""
    try:
        return int(tensor._version)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        return -1
