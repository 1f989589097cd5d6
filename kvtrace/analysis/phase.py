"""What a step was for, in a word: an encoder's pass, a prefill, or a decode step."""

from __future__ import annotations

from kvtrace.trace import Step, Trace

ENCODER = "encoder"


def phase(trace: Trace, step: Step) -> str:
    """`ENCODER`, where nothing but an encoder attended; else "prefill" or "decode"."""
    kinds = {trace.site(site).kind for group in step.sites for site in group.sites}
    return ENCODER if kinds == {"encoder"} else step.phase
