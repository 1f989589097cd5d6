"""Rows are copied together and come back as they were, in any dtype and layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvtrace.record.match import digest, digests, glance, same
from kvtrace.record.steps.rows import Copying
from kvtrace.trace import dtypes

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def copied(*stacks):
    copying = Copying()
    for kind, indices, tensors in stacks:
        copying.add(kind, indices, tensors)
    copying.start()
    return copying.finish()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_keeps_its_value(name):
    rows = torch.randn(2, 3, 4, 5).to(getattr(torch, name))
    found = copied(("k", [7], [rows])).of("k")[7]
    assert found.dtype == dtypes.storage(name)
    np.testing.assert_array_equal(dtypes.widen(found, name), rows.to(torch.float64).numpy())


def test_transposed_rows_of_different_shapes_keep_their_places():
    one = [torch.randn(2, 4, 3, 5).transpose(1, 2) for _ in range(3)]
    other = [torch.randn(2, 3, 1, 5), torch.randn(2, 3, 4, 5).half()]
    both = copied(("q", [0, 1, 2], one), ("o", [3, 4], other))
    for index, rows in enumerate(one):
        np.testing.assert_array_equal(both.of("q")[index], rows.numpy())
    for index, rows in zip((3, 4), other, strict=True):
        np.testing.assert_array_equal(both.of("o")[index], rows.numpy())


def test_a_copy_does_not_change_with_what_it_was_made_of():
    rows = torch.ones(1, 1, 1, 4)
    both = copied(("k", [0], [rows]))
    rows.zero_()
    assert both.of("k")[0].sum() == 4


def test_rows_that_need_a_gradient_are_copied_too():
    rows = torch.ones(1, 1, 2, 4, requires_grad=True)
    assert copied(("v", [0], [rows * 2])).of("v")[0].sum() == 16


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_nan_and_infinity_are_found_and_do_not_count_as_largest(name):
    rows = torch.tensor([1.0, -3.0, float("nan"), float("inf")]).reshape(1, 1, 1, 4)
    clean = torch.full((1, 1, 1, 4), 2.0)
    dtype = getattr(torch, name)
    both = copied(("o", [0, 1], [rows.to(dtype), clean.to(dtype)]))
    (stack,) = both.stacks
    assert not both.finite
    assert dict(stack.nonfinite()) == {("o", 0): 2, ("o", 1): 0}
    assert stack.largest() == [3.0, 2.0]


@pytest.mark.parametrize("part", [None, 3])
def test_digests_do_not_depend_on_how_rows_lie_in_memory(part):
    rows = torch.randn(2, 3, 5, 20)
    there = torch.view_as_complex(torch.stack((rows, -rows), -1)).conj()
    strided = rows.transpose(1, 2).contiguous().transpose(1, 2)
    expected = glance(rows, rows, part)
    assert there.imag.is_neg()
    for same_rows in (strided, there.real, there.imag):
        np.testing.assert_array_equal(glance(same_rows, same_rows, part), expected)
        np.testing.assert_array_equal(digest(same_rows, part), expected[0])


def test_digests_tell_every_single_bit():
    keys, values = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    before = digests(keys, values)
    changed = keys.clone()
    changed[0, 1, 2, 3] = torch.nextafter(changed[0, 1, 2, 3], torch.tensor(9.0))
    after = digests(changed, values)
    assert before[0][:2] == after[0][:2]
    assert before[0][2] != after[0][2]
    assert digests(values, keys) != before


def test_equal_is_bit_for_bit():
    nan = torch.full((1, 1, 1, 2), float("nan"))
    assert same(nan, nan.clone())
    assert not same(torch.zeros(1, 1, 1, 2), -torch.zeros(1, 1, 1, 2))
