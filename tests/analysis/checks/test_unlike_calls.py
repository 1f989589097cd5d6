"""A module that attends twice, and in single tokens once: its calls are known by their number."""

from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.checks import DIVERGED, UNCHECKED, check
from kvtrace.trace import Tensor
from kvtrace.trace.step import SiteStep


def unlike(logits_apart=0.0):
    """Two of three places of attention are one module's; from step 3 on the second is not seen.

    Args:
        logits_apart: How far the logits of step 3 differ.
    """
    trace = synthetic_trace(Shape())
    source = trace.source
    one, two, three = source.meta.sites
    two = replace(two, module=one.module, call=1, layer=0)
    source.meta = replace(source.meta, sites=(one, two, three))
    for number in range(3, 7):
        step = source.steps[number]
        (group,) = step.sites
        sites = (SiteStep((0, 2), group.mask, (1e-7,) * 2, (1.5,) * 2, (0,) * 2),)
        source.steps[number] = replace(step, sites=sites)
        compared = source.lane_steps["recomputed", number]
        compared.max_abs[0, Tensor.OUTPUT] = compared.reference_max[0, Tensor.OUTPUT]
    compared = source.lane_steps["recomputed", 3]
    logits = tuple(replace(diff, max_abs=logits_apart) for diff in compared.logits)
    source.lane_steps["recomputed", 3] = replace(compared, logits=logits)
    return trace


def test_calls_that_cannot_be_told_apart_are_not_compared_where_logits_are_equal():
    found = check(unlike())
    assert (found.verdict, found.findings) == (UNCHECKED, ())
    assert "step 3 is the first that was not: attention calls 0 of" in found.reason
    assert found.reason.endswith("its logits are equal")


def test_where_logits_differ_too_the_lanes_diverge():
    found = check(unlike(logits_apart=2.0))
    assert (found.verdict, found.findings[0].name, found.findings[0].step) == (
        DIVERGED,
        "UNKNOWN",
        3,
    )
