"""Whether a layer attended in a step, and the nearest step in which it did."""

from __future__ import annotations

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.trace import Trace


def attends(trace: Trace, number: int, layer: int) -> bool:
    """Whether a site attended in a step.

    Raises:
        MissingError: The step is not in the trace, or damaged.
    """
    return trace.step(number).site_step(layer) is not None


def nearest(trace: Trace, number: int, layer: int) -> int | None:
    """The last step before another in which a site attended; else the first one after it.

    Told by the rows that were written for it: None where it has none of its own.
    """
    steps = trace.source.writes(trace.site(layer).reads)["step"]
    behind = int(np.searchsorted(steps, number))
    for place in (behind - 1, behind):
        if 0 <= place < steps.size:
            found = int(steps[place])
            try:
                if attends(trace, found, layer):
                    return found
            except TraceError:
                continue  # that one can't be shown either
    return None
