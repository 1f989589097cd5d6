"""Steps that see the first rows and not their own, in a trace that nothing can be held against."""

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.checks import DIVERGED, UNCHECKED, check
from kvtrace.trace import Mask
from kvtrace.trace.step import SiteStep


def alone(top_left, *, prompt=5, healthy=None):
    """A trace of 7 steps and no other lane, in which some steps have a mask of their own rows.

    Args:
        top_left: Numbers of those steps.
        prompt: Tokens of step 0.
        healthy: The step in which the last layer sees what it should.
    """
    trace = synthetic_trace(Shape(prompt=prompt))
    trace.source.lane_steps.clear()
    for number in top_left:
        step = trace.source.steps[number]
        (group,) = step.sites
        masks = [Mask(offset=0)] * len(group.sites)
        if number == healthy:
            masks[-1] = group.mask
        sites = tuple(
            SiteStep((site,), mask, (1e-7,), (1.5,), (0,))
            for site, mask in zip(group.sites, masks, strict=True)
        )
        trace.source.steps[number] = replace(step, sites=sites)
    return trace


def test_steps_that_all_see_the_first_row_alone_are_named_without_another_lane():
    report = check(alone(range(1, 7)))

    (found,) = report.findings
    assert (report.verdict, found.name, found.step) == (DIVERGED, "MASK-TOP-LEFT", 1)
    (caveat,) = report.caveats
    assert caveat.startswith("nothing else was compared: no step of memory.kvt was")
    assert (found.layer, found.tensor) == (0, "mask")
    assert found.evidence.startswith("the query of place 5 sees only place 0: in each of the 6")


@pytest.mark.parametrize("healthy", [{"top_left": range(1, 6)}, {"healthy": 3}])
def test_where_any_step_or_layer_sees_itself_nothing_is_said(healthy):
    assert check(alone(**{"top_left": range(1, 7), **healthy})).verdict == UNCHECKED


def test_where_no_prompt_saw_itself_nothing_is_said():
    assert check(alone(range(1, 7), prompt=1)).verdict == UNCHECKED
