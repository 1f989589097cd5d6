"""Do the recorded rows explain the recorded output? softmax(q·kᵀ·scale + mask)·v against it.

Calculated from the trace alone. A large error means that the attention did something the trace
does not know of, or that the recording is wrong: never hide it.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from kvtrace.trace import Site, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.weights import mix

TOLERANCES = {
    "float64": 1e-6,
    "float32": 1e-4,
    "TF32": 1e-2,
    "float16": 1e-2,
    "bfloat16": 5e-2,
}
"""Relative; room for sums in another order, and for softmax in the model's own dtype."""


def tolerance_of(trace: Trace, site: Site) -> float:
    """How far an output may stand from the rows, relative: what its lanes count as rounding, too.

    Within autocast a site is given wider numbers than it calculates with.
    """
    rounding = [lane.tolerance for lane in trace.meta.lanes if lane.dtype == trace.meta.model.dtype]
    dtype = trace.meta.model.products if site.dtype == "float32" else ""
    return max([TOLERANCES.get(dtype or site.dtype, 1e-1), *rounding])


class SelfCheck(Struct, frozen=True):
    """One query row of one head, or of all heads of a site.

    Attributes:
        error: Largest |derived - recorded output|.
        scale: Largest |recorded output|.
        tolerance: Relative, by dtype.
        recorded_error: What the recorder found for the whole site; None: it did not check.
    """

    error: float
    scale: float
    tolerance: float
    recorded_error: float | None

    @property
    def relative(self) -> float:
        """Error over scale; 0/0 is 0."""
        if self.error == 0:
            return 0.0
        return self.error / self.scale if self.scale > 0 else float("inf")

    @property
    def passed(self) -> bool:
        """Whether the recorded rows explain the output."""
        return bool(self.relative <= self.tolerance)


def self_check(
    trace: Trace,
    number: int,
    layer: int,
    head: int | None = None,
    sequence: int = 0,
    query: int | None = None,
    *,
    rows: tuple[Floats, Floats] | None = None,
) -> SelfCheck | None:
    """Derive the output of a site from its rows.

    Args:
        trace: The trace.
        number: Step.
        layer: Site.
        head: Only this query head; None: all.
        sequence: Row of the batch.
        query: Only this row of the step; None: all.
        rows: K and V, [1 or kv_heads, seq, dim], from a caller that has them.

    Returns:
        None if queries or output were not recorded.

    Raises:
        MissingError: The site did not attend in this step.
        TraceError: The rows are damaged.
    """
    site = trace.site(layer)
    recorded = trace.rows(number, layer, Tensor.OUTPUT, sequence, head=head)
    if recorded is None:
        return None
    if trace.rows(number, layer, Tensor.QUERIES, sequence, head=head) is None:
        return None
    if rows is None:
        view = trace.cache(
            number, layer, sequence, head=None if head is None else site.kv_head(head)
        )
        rows = view.keys, view.values
    keys, values = rows
    weights = trace.weights(number, layer, head, sequence, query, keys=keys).weights
    if query is not None:
        row = query % recorded.shape[1]
        recorded = recorded[:, row : row + 1]
    derived = mix(weights, values)
    with np.errstate(invalid="ignore"):
        delta = np.abs(derived - recorded)
    return SelfCheck(
        error=float(delta.max(initial=0)),
        scale=float(np.abs(recorded).max(initial=0)),
        tolerance=tolerance_of(trace, site),
        recorded_error=_recorded(trace, number, layer),
    )


def _recorded(trace: Trace, number: int, layer: int) -> float | None:
    group = trace.site_step(number, layer)
    return group.check_error[group.sites.index(trace.site(layer).index)]
