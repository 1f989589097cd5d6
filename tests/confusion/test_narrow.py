"""Bugs of the zoo in a narrow type, where a difference is little more than rounding."""

import pytest
import torch

from confusion.score import called, recorded
from confusion.variants import variants
from kvtrace.analysis.checks import check
from kvtrace_fixtures.zoo.drive import drive
from kvtrace_fixtures.zoo.table import catalogue


def report(name, dtype):
    variant = variants(catalogue()[name], 1)[0]
    model = variant.model().to(dtype)
    hook = variant.hook(model)
    return check(recorded(model, lambda: drive(model, variant.course, variant.bug.run, hook)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rope-off-by-one", "keys-cached-plain", "softmax-over-heads"])
def test_a_bug_keeps_its_name_in_a_narrow_type(name, dtype):
    assert called(report(name, dtype)) == catalogue()[name].kind


def test_rows_that_are_quantised_anew_in_every_step_come_from_a_cache():
    found = report("quantised-to-eight", torch.bfloat16)
    assert "no KV cache" not in found.reason
    assert found.ok
