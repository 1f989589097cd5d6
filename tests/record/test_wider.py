"""Weights in a wider dtype."""

from __future__ import annotations

import pytest
import torch

from kvtrace.record.lanes.wider import wider

LARGE = torch.arange(float(1 << 20)).view(1 << 10, 1 << 10)


@pytest.mark.parametrize("given", [LARGE, LARGE.T, LARGE[:3, :5], LARGE.bfloat16(), LARGE.double()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wider_copy_is_what_torch_would_make_of_it(given, dtype):
    found = wider(given, dtype)
    expected = given.to(dtype, copy=True)
    assert torch.equal(found, expected)
    assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())


@pytest.mark.parametrize("given", [LARGE.double(), LARGE.double()[:3]])
def test_a_wider_copy_shares_no_memory(given):
    found = wider(given, torch.float64)
    found.zero_()
    assert given.any()
