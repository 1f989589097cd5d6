"""What is told besides the first cause."""

import pytest

from builders.synthetic import synthetic_trace
from kvtrace.analysis.checks.causes import Causes
from kvtrace.analysis.checks.report import Finding


@pytest.mark.parametrize(("apart", "told"), [(5e-5, False), (0.3, True)])
def test_what_is_hardly_beyond_rounding_before_a_known_cause_is_left_of_it(apart, told):
    trace = synthetic_trace()
    causes = Causes(trace)
    second, third = (trace.step(number) for number in trace.numbers[1:3])
    here = Finding("SCORE-NONLINEAR", third.number, 0, "weights", "", apart=apart, limit=2e-5)
    # as long as nothing else was found, it is all there is to say
    assert causes.news(third, here)
    causes.add(second, [Finding("UPSTREAM", second.number, 1, "q", "", apart=0.8, limit=2e-5)])
    assert causes.news(third, here) is told
