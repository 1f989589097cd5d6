"""`kvtrace.check` of the shipped models of one's own, in the types that they may be run in."""

import pytest
import torch

import kvtrace
from builders.custom_drives import STYLES, UNCACHED, build
from kvtrace.analysis.checks import EQUAL

CACHED = [style for style in STYLES if style not in (*UNCACHED, "recurrent")]


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("style", CACHED)
def test_a_healthy_model_of_ones_own_is_equal_in_sixteen_bits(style, dtype):
    report = kvtrace.check(build(style).to(dtype), [[5, 9, 30, 7, 11, 12]], new_tokens=6)
    assert report.verdict == EQUAL, report
