"""What is wrong at one site of a step, and which sequences show it."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.around.absent import calls_shifted
from kvtrace.analysis.checks.around.doubt import doubtful
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.placed import named, placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.cross import (
    beside_queries,
    cross_of_other_layer,
    stale_cross,
)
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.analysis.checks.wrong_output.carried import carried
from kvtrace.analysis.checks.wrong_rows.queries import check_queries
from kvtrace.analysis.heads.tensors import NAMES
from kvtrace.trace import Step, Tensor, Trace


def at_site(
    trace: Trace, step: Step, layer: int, sequences: list[int], lane: str, limits: Noise
) -> list[Finding]:
    """What is wrong at one site, sequences that show the same together."""
    shifted = calls_shifted(trace, step, layer, lane)
    if shifted is not None:
        return [placed(trace, shifted, limits, lane)]
    tolerance = limits.tolerance(layer)
    groups: dict[str, list[Finding]] = {}
    staged = True
    for sequence in sequences:
        scene = stage(trace, step.number, layer, sequence, tolerance, lane)
        staged = staged and scene is not None
        one = named(diagnose, scene)
        if one is None and scene is not None and scene.site.kind == "cross":
            one = named(check_queries, beside_queries(trace, scene, lane))
        if one is not None:
            groups.setdefault(one.name, []).append(replace(one, sequences=(sequence,)))
    if groups:
        out = [_together(trace, step, same, lane, limits) for same in groups.values()]
    else:
        unknown = _broken(trace, step, layer, sequences) or stale_cross(trace, step.number, layer)
        unknown = unknown or cross_of_other_layer(trace, step.number, layer, lane)
        if unknown is None:
            unknown = _unexplained(trace, step, layer, lane, limits, sequences if staged else None)
        out = [] if unknown is None else [placed(trace, unknown, limits, lane)]
    return [one for one in out if not doubtful(trace, one, lane)]


def _together(trace: Trace, step: Step, same: list[Finding], lane: str, limits: Noise) -> Finding:
    """What several sequences show, as one finding at the place of the first of them."""
    rows = tuple(sorted(n for one in same for n in one.sequences))
    everyone = len(rows) == step.num_sequences
    found = replace(same[0], sequences=() if everyone else rows)
    return placed(trace, found, limits, lane, same[0].sequences[0])


def _unexplained(
    trace: Trace,
    step: Step,
    layer: int,
    lane: str,
    limits: Noise,
    staged: list[int] | None,
) -> Finding | None:
    """The difference itself, where no signature speaks.

    Once the rows of the `staged` sequences were looked at, keys and values that differ are rows
    that no query sees, and the other sequences have been explained; the output is right where it
    follows from the others.
    """
    compared = trace.compared(step.number, lane)
    if compared is None:
        return None
    relative: NDArray[np.float64] = np.asarray(compared.relative[layer], np.float64)
    beyond = relative > limits.threshold[layer][:, None]
    if staged is not None:
        beyond[[Tensor.KEYS, Tensor.VALUES]] = False
        if beyond[Tensor.OUTPUT].any() and carried(trace, step, layer, staged, lane, limits):
            beyond[Tensor.OUTPUT] = False
        beyond &= np.isin(compared.sequence[layer], staged)
    over = np.argwhere(beyond)
    if not len(over):
        return None
    tensor, head = (int(n) for n in over[0])
    letter = NAMES[Tensor(tensor)]
    evidence = f"{letter} is off by {relative[tensor, head]:.2g} of its largest"
    found = Finding("UNKNOWN", step.number, layer, letter, evidence, head=head)
    far = float(relative[tensor, head])
    return replace(found, apart=far, limit=float(limits.threshold[layer, tensor]))


def _broken(trace: Trace, step: Step, layer: int, sequences: list[int]) -> Finding | None:
    """NaN or Inf in rows of real tokens, where the other lane has them too."""
    group = step.site_step(trace.site(layer).index)
    if group is None or not group.nonfinite[group.sites.index(trace.site(layer).index)]:
        return None
    for sequence in sequences:
        live = np.array(step.positions[sequence]) >= 0
        for tensor in Tensor:
            rows = trace.rows(step.number, layer, tensor, sequence)
            if rows is None or rows.shape[1] != len(live):
                continue
            bad = ~np.isfinite(rows[:, live])
            if bad.any():
                head, row, dim = (int(n) for n in np.argwhere(bad)[0])
                count = f"{int(bad.sum())} number{'s' if bad.sum() > 1 else ''}"
                evidence = (
                    f"{count} of {NAMES[tensor]} without and with the cache, "
                    f"first in head {head}, feature {dim}: the model itself makes them"
                )
                at = (step.number, layer, NAMES[tensor])
                return Finding("NONFINITE", *at, evidence, head, row)
    return None
