"""Causes beside the first one: in its step at later layers and in its own, and later before it.

Behind the first divergence every input differs, and what follows from that is no cause of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from kvtrace.analysis.checks.around.absent import calls_shifted
from kvtrace.analysis.checks.around.layer_alone import diagnose_apart, diagnose_same
from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.placed import named, placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.analysis.checks.wrong_output.supposing import scores_of_its_own
from kvtrace.trace import Step, Trace

_CAUSES = 3
"""Further causes that are named in the step of the first one."""

_CHOSEN_TOO = ("EVICTED-EARLY", "HISTORY-LOST")
"""What rows look like that another layer chose to drop."""


def beside(
    trace: Trace, step: Step, first: Sequence[Finding], lane: str, limits: Noise
) -> Iterator[Finding]:
    """Causes in a step that the first one does not explain, each kind once.

    Args:
        trace: Whose step.
        step: It.
        first: What was found in it first, at one site.
        lane: The reference.
        limits: What is rounding.
    """
    if not first or first[0].name == "NONFINITE":
        return  # behind numbers that are none, nothing is right
    there, known = trace.site(first[0].layer).layer, {one.name for one in first}
    chosen = _CHOSEN_TOO if "EVICTED-BY-CHOICE" in known else ()
    for site in sorted(set(step.attending)):
        if trace.site(site).layer <= there and site != first[0].layer:
            continue
        if len(known) > len(first) + _CAUSES:
            break
        for sequence in first[0].sequences or range(step.num_sequences):
            one = _one(trace, step, (site, sequence), first[0], lane, limits)
            if one is not None and one.name not in known:
                known.add(one.name)
                found = replace(one, sequences=first[0].sequences)
                found = placed(trace, found, limits, lane, sequence)
                if found.name not in chosen:
                    yield found


def _one(
    trace: Trace, step: Step, where: tuple[int, int], first: Finding, lane: str, limits: Noise
) -> Finding | None:
    """What one site shows of its own, in one sequence."""
    site, sequence = where
    if calls_shifted(trace, step, site, lane) is not None:
        return None
    tolerance = limits.tolerance(site)
    scene = stage(trace, step.number, site, sequence, tolerance, lane)
    if scene is None:
        return None
    if site == first.layer and first.tensor != "q":
        return named(lambda one: diagnose_same(one, first), scene)
    return named(diagnose_apart, scene) or named(
        lambda one: scores_of_its_own(trace, one, lane), scene
    )
