"""Forwards of which it shows only later whether they are steps: training begins like a prefill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from kvtrace.record.capture.forward import Forward

Gate = Callable[[Forward], str]
"""Whether a forward is a "step", is "no" step, or must "wait" for what happens after it."""


@dataclass(slots=True)
class Undecided:
    """Which forwards are steps.

    Attributes:
        keep: Takes a forward that waited, and is a step.
        leave: Is told that a forward is none.
        gate: Asked of each forward whether it is to be a step; None: all are.
        waits: The forward that waits for its verdict; None: none does.
    """

    keep: Callable[[Forward], None]
    leave: Callable[[], None]
    gate: Gate | None = None
    waits: Forward | None = None

    def is_step(self, forward: Forward, gate: Gate) -> bool:
        """Whether a forward that is over is a step, as far as a gate can say it now."""
        if forward.part_of is not None:
            return True
        verdict = gate(forward)
        if verdict == "wait":
            # whoever samples may change the logits in place before it is known what this was
            logits = None if forward.logits is None else forward.logits.detach().clone()
            self.waits = replace(forward, logits=logits)
        elif verdict == "no":
            self.leave()
        return verdict == "step"

    def settle(self, *, keep: bool) -> None:
        """The forward that waits is a step after all, or is none."""
        held, self.waits = self.waits, None
        if held is not None:
            if keep:
                self.keep(held)
            else:
                self.leave()
