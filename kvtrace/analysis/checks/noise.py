"""How large a difference is still rounding, and why.

Two lanes in the same dtype differ by rounding alone, in amounts that grow with depth. A fixed
tolerance for the dtype is a floor; where a referee (the same tokens in fp32) was recorded, it
tells how far the recomputed lane itself is from the truth, and the cached lane may be a few times
as far.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.trace import NOT_REPEATABLE, LaneStep, Reference, Tensor, Trace, rounded_by

# Relative to max|row|; measured on random models of 185 architectures, 4 layers.
FLOOR = {
    "float64": 1e-12,
    "float32": 2e-5,
    "TF32": 3e-3,
    "float16": 3e-3,
    "bfloat16": 2e-2,
}
TIMES_REFEREE = 4.0
_LAYERS_MEASURED = 4

_CARRIED = 4.0
"""Times what is rounding behind an attention whose large scores carried it further."""

NOTHING_LEFT = 0.5
"""Of the largest number: where what follows from rounded rows may be off by more, as beside two or
three bits, attention may turn to other rows altogether, and numbers of later layers say nothing."""

ANYTHING = 16.0
"""Of the largest number: further than one row is from another, however small."""

_RECURRENT = 4.0
"""Layers that keep a state sum a text in chunks and go on row by row: other sums in either lane."""


class Noise(Struct, frozen=True):
    """Relative differences that are rounding.

    Attributes:
        threshold: [sites, 4] in the order of `Tensor`.
        reason: Where they come from, in a sentence.
        held: Of a cache that rounds its rows: what one that a layer holds may change by from step
            to step, [sites]; None: caches keep them as they are.
    """

    threshold: NDArray[np.float64]
    reason: str
    held: NDArray[np.float64] | None = None

    def tolerance(self, site: int) -> float:
        """What is rounding of any tensor of a site.

        One that may be off by all it has is not judged, and lends its limit to no other.
        """
        limits = self.threshold[site]
        return float(limits.max(where=limits < 1, initial=0.0) or limits.max())


def noise(trace: Trace, lane: str, *, referee: bool = True) -> Noise:
    """Thresholds for a trace.

    Args:
        trace: Its LANE comparisons are read, no rows.
        lane: The lane that is compared.
        referee: Ask the referee too, if there is one.
    """
    sites = trace.meta.sites
    dtype = trace.meta.model.dtype
    found = trace.meta.lane(lane)
    floor = max(FLOOR.get(dtype, FLOOR["float32"]), found.tolerance if found else 0.0)
    depth = np.array([max(1.0, (site.layer + 1) / _LAYERS_MEASURED) for site in sites])
    threshold = np.repeat((floor * depth)[:, None], 4, axis=1)
    # the output of attention adds the rounding of q, k, v, softmax and mix
    threshold[:, 3] *= 2
    # under autocast the lane's type is not the model's
    told = found.reason.partition(" ")[0] if found else ""
    kind = told if told in FLOOR else dtype
    reason = f"{kind} rounding: {floor:.0e} of the largest number, growing with depth"
    wide = dtype in ("float32", "float64")
    if wide and recurrent(trace):
        threshold *= _RECURRENT
        reason += f", {_RECURRENT:.0f} times that where recurrent layers sum in chunks and by rows"
    inside = max(filter(None, map(rounded_by, trace.notes)), default=None)
    if inside is not None:
        reason += f"; rounding inside of the model moves rows by {inside:.1e}"
        reason += f", raised to {TIMES_REFEREE:.0f} times that"
        threshold = np.maximum(threshold, TIMES_REFEREE * inside)
    far = _referee_distance(trace, lane) if referee else None
    truth = trace.meta.lane("referee")
    if far is not None and truth is not None:
        # numbers that are drawn anew in every call tell nothing of rounding
        raised = 0 * far if drawn(trace) else TIMES_REFEREE * far
        off = f"recomputing itself is off from {truth.dtype} by up to {np.nanmax(far):.1e}"
        times = f", raised to {TIMES_REFEREE:.0f} times that" if (raised > threshold).any() else ""
        reason += f"; {off}{times}"
        threshold = np.fmax(threshold, raised)
    return Noise(threshold, reason)


def behind(limits: Noise, trace: Trace, number: int, site: int, lane: str) -> Noise:
    """The limits of a run in which rounding was carried on by large scores of a site.

    Args:
        limits: Before.
        trace: Whose sites.
        number: The step.
        site: What attends after it has what it made for its input.
        lane: The reference. Behind a cache that rounds its rows, how far the output of the site is
            from it tells what may follow; the model's own rounding does not.
    """
    sites = trace.meta.sites
    first = min((one.layer for one in sites if one.layer > sites[site].layer), default=None)
    if first is None:
        return limits
    plain = noise(trace, "", referee=False).threshold
    later = np.array([one.layer >= first for one in sites])
    compared = None if limits.held is None else trace.compared(number, lane)
    apart = 0.0 if compared is None else largest(compared, len(sites))[site, Tensor.OUTPUT]
    rounded = _CARRIED * float(apart)
    least = np.fmax(_CARRIED * plain, rounded if rounded < NOTHING_LEFT else ANYTHING)
    raised = np.where(later[:, None], np.fmax(limits.threshold, least), limits.threshold)
    return replace(limits, threshold=raised)


def recurrent(trace: Trace) -> bool:
    """Whether some layers keep a state instead of rows."""
    return any(one.kind == "state" for one in trace.meta.cache_layers)


def drawn(trace: Trace) -> bool:
    """Whether the model gave other numbers when it was called twice without a cache."""
    return any(note.text.startswith(NOT_REPEATABLE) for note in trace.notes)


def largest(compared: LaneStep, sites: int) -> NDArray[np.float64]:
    """Largest relative difference of any head, [sites, 4]; NaN where not compared."""
    relative = np.asarray(compared.relative, np.float64)
    out = np.full((sites, 4), np.nan)
    if relative.size:
        here = np.fmax.reduce(relative, axis=2)
        out[: len(here)] = here
    return out


def _referee_distance(trace: Trace, lane: str) -> NDArray[np.float64] | None:
    """Largest relative distance of a lane's pass from the referee's, [sites, 4]; None without.

    The cached lane plays no part in it, so a faulty cache cannot raise its own threshold.
    """
    if trace.meta.lane("referee") is None:
        return None
    out = np.full((len(trace.meta.sites), 4), np.nan)
    for number in list(trace.numbers)[-1:]:
        for sequence in range(trace.step(number).num_sequences):
            mine = trace.reference(number, sequence, lane)
            theirs = trace.reference(number, sequence, "referee")
            if mine is None or theirs is None:
                continue
            for site in range(len(out)):
                out[site] = np.fmax(out[site], _distance(mine, theirs, site))
    return out if np.isfinite(out).any() else None


def _distance(mine: Reference, theirs: Reference, site: int) -> NDArray[np.float64]:
    """Relative distance of each tensor of one site, [4]."""
    out = np.full(4, np.nan)
    for tensor in Tensor:
        rows, truth = mine.rows(site, tensor), theirs.rows(site, tensor)
        if rows is None or truth is None or rows.shape != truth.shape or not rows.size:
            continue
        live = mine.positions >= 0
        if len(live) != rows.shape[1]:  # of another text
            live = np.ones(rows.shape[1], bool)
        size = float(np.abs(truth[:, live]).max(initial=0.0))
        if size > 0:
            out[tensor] = float(np.abs(rows[:, live] - truth[:, live]).max(initial=0.0)) / size
    return out
