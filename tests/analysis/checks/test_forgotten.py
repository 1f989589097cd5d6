"""Steps that begin a cache where the step before ended: rows were lost, or lie elsewhere."""

import pytest
from msgspec.structs import replace

from builders.synthetic import Shape, synthetic_trace
from kvtrace.analysis.checks.whole_run.forgotten import Forgotten


def begun_anew(step, layers):
    """The step as one that begins a cache, of these layers."""
    groups = (replace(one, layers=layers, length_before=0) for one in step.caches)
    return replace(step, parent=None, caches=tuple(groups))


@pytest.mark.parametrize(("layers", "names"), [((0, 1), ["HISTORY-LOST"]), ((2, 3), [])])
def test_rows_are_lost_only_where_the_step_before_had_some_of_these_layers(layers, names):
    trace = synthetic_trace(Shape(layers=4))
    prompt = begun_anew(trace.step(0), (0, 1))
    walk = Forgotten(trace)
    found = [walk.add(prompt, None), walk.add(begun_anew(trace.step(1), layers), prompt)]
    assert [one.name for one in found if one is not None] == names
