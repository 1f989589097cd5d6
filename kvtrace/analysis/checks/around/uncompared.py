"""Steps of which no attention was compared: what the rows of the first one show by themselves.

A cache that lets go of rows before a prompt has looked at them hands on fewer than there were
tokens, and the lanes' rows can't be laid side by side. Whose they are can still be told.
"""

from __future__ import annotations

from kvtrace.analysis.checks.at_site import at_site
from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import identify
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.trace import Step, Trace


def of_known_rows(
    trace: Trace, step: Step, sequences: list[int], lane: str, limits: Noise
) -> list[Finding]:
    """What is wrong with the first attention; nothing where a row of it is no token's.

    Args:
        trace: Whose step.
        step: One of which no attention was compared, and whose logits differ.
        sequences: To look at.
        lane: The reference.
        limits: What is rounding.
    """
    sites = [site for site in step.attending if trace.site(site).kind == "self"]
    if not sites:
        return []
    first = min(sites, key=lambda site: trace.site(site).layer)
    known = []
    for sequence in sequences:
        scene = stage(trace, step.number, first, sequence, limits.tolerance(first), lane)
        if scene is not None and (identify(scene).place[scene.seen] >= 0).all():
            known.append(sequence)
    return at_site(trace, step, first, known, lane, limits) if known else []
