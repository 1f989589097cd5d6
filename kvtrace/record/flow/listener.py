"""Who is told what the function mode sees: the seam between following and reading."""

from __future__ import annotations

from typing import Any, Protocol

from kvtrace.record.flow.follow import Args, Kwargs
from kvtrace.record.flow.loops import Loop
from kvtrace.record.flow.plan import Mix


class Listener(Protocol):
    """Who is told what the mode sees."""

    def mixed(self, mix: Mix) -> bool:
        """Weights were multiplied with something; whether that contracted the key axis."""

    def fused(self, kind: str, args: Args, kwargs: Kwargs, out: Any) -> None:
        """A fused attention call: "sdpa", "flex" or "unfusable"."""

    @property
    def loop(self) -> Loop:
        """Calls with one head that wait for the next one."""

    def failed(self, error: Exception) -> None:
        """Following a function went wrong; the function itself is unharmed."""

    def consumed(self, name: str, args: Args) -> bool:
        """A function is about to take outputs; whether its result still is one of them."""
