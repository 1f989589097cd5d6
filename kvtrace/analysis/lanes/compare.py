"""Cached against another lane, element by element, and what the difference means.

Relative means |cached - lane| / max|lane| of the same head's rows: the measure the lane's
tolerance is stated in. Absent means not compared, never equal.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.heads.tensors import head_rows
from kvtrace.trace import CACHED, Lane, Tensor, Trace
from kvtrace.trace.dtypes import Floats

BUG_TIMES = 10
"""A difference beyond this many tolerances is not explained by rounding that grows with depth."""

DEFAULT_TOLERANCE = 2e-5


class Verdict(StrEnum):
    """What a difference between lanes means."""

    NOT_COMPARED = "not compared"
    EQUAL = "equal"
    ROUNDING = "rounding"
    SUSPICIOUS = "suspicious"
    BUG = "bug-sized"
    NOT_FINITE = "NaN or Inf"

    @property
    def harmless(self) -> bool:
        """Nothing to look into."""
        return self in (Verdict.EQUAL, Verdict.ROUNDING)


class Comparison(Struct, frozen=True):
    """One head's rows in both lanes.

    Attributes:
        value, other: Cached and the other lane, [rows, dim]; `other` is NaN where absent.
        absolute: |value - other|, [rows, dim]; NaN where not compared.
        reference_max: Largest finite |other| of the rows compared; 0 if none.
        largest: Largest absolute difference; NaN if nothing was compared.
        row, dim: Where it is; -1 if nothing was compared.
        rms: Root mean square of the difference; NaN if nothing was compared.
        rows_compared: Rows that both lanes have.
        beyond: Elements beyond the tolerance.
        tolerance: Relative, of the lane.
        verdict: What it means.
    """

    value: Floats
    other: Floats
    absolute: Floats
    reference_max: float
    largest: float
    row: int
    dim: int
    rms: float
    rows_compared: int
    beyond: int
    tolerance: float
    verdict: Verdict

    @property
    def largest_relative(self) -> float:
        """The largest difference as a share of max|other|."""
        return quotient(self.largest, self.reference_max)

    @property
    def relative(self) -> Floats:
        """|value - other| / max|other|, [rows, dim]; NaN where not compared."""
        divisor = self.reference_max if self.reference_max > 0 else 1.0
        return np.asarray(self.absolute / np.float32(divisor), np.float32)


def quotient(largest: float, reference: float) -> float:
    """Difference over reference, where 0/0 is 0 and NaN stays."""
    if largest == 0:
        return 0.0
    return largest / reference if reference > 0 else float("inf" if largest > 0 else "nan")


def verdict(relative: float, tolerance: float) -> Verdict:
    """What a largest relative difference means; NaN and Inf are a class of their own."""
    if not np.isfinite(relative):
        return Verdict.NOT_FINITE
    if relative == 0:
        return Verdict.EQUAL
    if relative <= tolerance:
        return Verdict.ROUNDING
    return Verdict.SUSPICIOUS if relative <= BUG_TIMES * tolerance else Verdict.BUG


def tolerance_of(trace: Trace, lane: str) -> float:
    """The lane's tolerance, relative."""
    found = trace.meta.lane(lane)
    return DEFAULT_TOLERANCE if found is None else found.tolerance


def reason_of(lane: Lane | None) -> str:
    """The lane's tolerance with its reason, for people."""
    if lane is None:
        return "no such lane was recorded"
    why = f" ({lane.reason})" if lane.reason else ""
    return f"up to {lane.tolerance:.0e} counts as rounding{why}"


def compare(
    trace: Trace,
    number: int,
    layer: int,
    tensor: Tensor,
    head: int,
    sequence: int = 0,
    lane: str = "recomputed",
) -> Comparison | None:
    """One query head's rows of any tensor in both lanes; None: not recorded in the cached one.

    Raises:
        MissingError: The site did not attend in this step.
        TraceError: The rows are damaged.
    """
    value = head_rows(trace, number, layer, tensor, head, sequence)
    if value is None:
        return None
    other = None
    if trace.meta.lane(lane) is not None and lane != CACHED:
        other = head_rows(trace, number, layer, tensor, head, sequence, lane)
    if other is None:
        other = np.full(value.shape, np.nan, np.float32)
    return compare_rows(value, other, tolerance_of(trace, lane))


def compare_rows(value: Floats, other: Floats, tolerance: float) -> Comparison:
    """Any two arrays of rows, [rows, dim]; a row of `other` that is all NaN is absent."""
    with np.errstate(invalid="ignore"):
        absolute = np.abs(value - other)
    if absolute.size and np.isfinite(absolute.max()):
        # the usual case, and the one a screen waits for: everything is there and finite
        reference = float(max(other.max(), -other.min()))
        rank, beyond, rows = absolute, 0, len(other)
        if float(absolute.max()) > tolerance * reference:
            beyond = int((absolute > tolerance * reference).sum())
        square = float(np.mean(np.square(absolute)))
    else:
        absent = np.asarray(np.isnan(other).all(axis=1), bool)
        if absent.all():
            return _not_compared(value, other, absolute, tolerance)
        there = np.broadcast_to(~absent[:, None], absolute.shape)
        reference = float(np.abs(other[np.isfinite(other)]).max(initial=0))
        broken: NDArray[np.bool_] = ~np.isfinite(absolute) & there
        rank = np.where(broken, np.inf, np.where(there, absolute, -1))
        beyond = int((broken | (there & (absolute > tolerance * reference))).sum())
        rows = int((~absent).sum())
        square = float(np.mean(np.square(absolute[~absent], dtype=np.float64)))
    row, dim = (int(i) for i in np.unravel_index(int(rank.argmax()), rank.shape))
    largest = float(absolute[row, dim])
    return Comparison(
        value=value,
        other=other,
        absolute=absolute,
        reference_max=reference,
        largest=largest,
        row=row,
        dim=dim,
        rms=float(np.sqrt(square)),
        rows_compared=rows,
        beyond=beyond,
        tolerance=tolerance,
        verdict=verdict(quotient(largest, reference), tolerance),
    )


def _not_compared(value: Floats, other: Floats, absolute: Floats, tolerance: float) -> Comparison:
    nothing = float("nan")
    return Comparison(
        value, other, absolute, 0.0, nothing, -1, -1, nothing, 0, 0, tolerance,
        Verdict.NOT_COMPARED,
    )  # fmt: skip


def head_verdicts(trace: Trace, number: int, lane: str) -> NDArray[np.float32] | None:
    """Largest relative difference of the rows new in a step, [sites, 4, heads].

    NaN where not compared; infinite where a compared element is not finite. None: the step was
    not compared.
    """
    compared = trace.compared(number, lane)
    if compared is None:
        return None
    relative = compared.relative
    there = compared.row >= 0
    broken = there & ~np.isfinite(relative)
    told = np.where(broken, np.float32(np.inf), relative).astype(np.float32)
    sites, _, heads = told.shape
    # sites that were met after this step were not compared in it
    more = (max(0, len(trace.meta.sites) - sites), max(0, trace.meta.max_heads - heads))
    if not any(more):
        return told
    return np.pad(told, ((0, more[0]), (0, 0), (0, more[1])), constant_values=np.nan)
