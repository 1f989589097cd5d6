"""Who is told what the function mode sees: the seam between following and reading."""

from __future__ import annotations

from typing import Any, Protocol

from kvtrace.record.flow.calls.loops import Loop
from kvtrace.record.flow.marks.follow import Args, Kwargs
from kvtrace.record.flow.modes.route import Walk
from kvtrace.record.flow.plans.arrange import Sizes
from kvtrace.record.flow.plans.mix import Mix
from kvtrace.record.flow.plans.plan import Plan


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

    def walked(self, walk: Walk) -> None:
        """A call has gone a known route to its end."""

    @property
    def site(self) -> tuple[str, int] | None:
        """The module that runs, and which of its calls comes next; None: not to be known."""

    @property
    def frame(self) -> object:
        """The innermost forward that runs."""

    @property
    def sizes_now(self) -> Sizes:
        """Sequences and tokens of the step, and of the module that runs."""

    @property
    def plan_of_last(self) -> Plan | None:
        """How the tensors of the call that was read last lie."""
