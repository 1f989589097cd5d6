"""See an attention KV cache: record every step, scrub through it, compare lanes.

PYTEST_DONT_REWRITE: a test run that is recorded has loaded kvtrace before pytest, which would warn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kvtrace.version import __version__

if TYPE_CHECKING:
    from kvtrace.files import open_trace as open  # noqa: A004 - kvtrace.open reads like open
    from kvtrace.record import record
    from kvtrace.trace import Trace
    from kvtrace.verify.api import assert_cache_consistent
    from kvtrace.verify.asked import check, diff

_PUBLIC = {
    "assert_cache_consistent": ("kvtrace.verify.api", "assert_cache_consistent"),
    "check": ("kvtrace.verify.asked", "check"),
    "diff": ("kvtrace.verify.asked", "diff"),
    "open": ("kvtrace.files", "open_trace"),
    "record": ("kvtrace.record", "record"),
    "Trace": ("kvtrace.trace", "Trace"),
}

__all__ = ["Trace", "__version__", "assert_cache_consistent", "check", "diff", "open", "record"]


def __getattr__(name: str) -> object:
    """Public names load what they need only when used (PEP 562): `import kvtrace` is free."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kvtrace' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)
