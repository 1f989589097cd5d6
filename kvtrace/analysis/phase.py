"""What a step was for, in a word: an encoder's pass, a prefill, or a decode step."""

from __future__ import annotations

from kvtrace.trace import Step, Trace
from kvtrace.trace.drafts import verifies

ENCODER = "encoder"


def phase(trace: Trace, step: Step) -> str:
    """`ENCODER`, where nothing but an encoder attended; else "prefill" or "decode".

    One whose attention was not seen is told by what it is not: a decoder beside it would attend
    to it. Drafts that are verified are no part of a prompt, whatever the step says of itself.
    """
    kinds = {trace.site(site).kind for site in step.attending}
    unseen = not kinds and any(site.kind == "cross" for site in trace.meta.sites)
    if unseen or kinds == {"encoder"}:
        return ENCODER
    return "decode" if step.phase == "decode" or verifies(trace.source, step) else "prefill"
