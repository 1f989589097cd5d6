"""Rows of tokens and heads in other layouts than ours: found by their sizes, and put back."""

import pytest
import torch

from kvtrace.record.capture.replaced.by_token import by_token, in_layout
from kvtrace.record.flow.calls.kvheads import widened
from kvtrace.record.lanes.compared.heads import with_heads


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((6, 5), lambda b, t, part: (b * 3 + t,)),
        ((2, 3, 5), lambda b, t, part: (b, t)),
        ((2, 4, 3, 5), lambda b, t, part: (b, part, t)),
    ],
)
def test_tokens_are_found_wherever_they_are_and_go_back_there(shape, place):
    given = torch.arange(torch.Size(shape).numel()).reshape(shape)
    found = by_token(given, 2, 3)
    assert found.shape[:2] == (2, 3)
    for b, t, part in ((0, 0, 0), (1, 2, 0), (1, 1, found.shape[2] - 1)):
        assert torch.equal(found[b, t, part], given[place(b, t, part)])
    assert torch.equal(in_layout(found, given, 2, 3), given)


def test_rows_of_other_sizes_have_no_tokens():
    assert by_token(torch.zeros(7, 5), 2, 3) is None


def test_fewer_heads_are_the_first_of_each_group_and_more_are_repeated():
    rows = torch.arange(4.0).reshape(1, 4, 1, 1)
    assert with_heads(rows, 2).flatten().tolist() == [0, 2]
    assert with_heads(rows, 8).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert with_heads(rows, 3) is rows


def test_the_side_with_fewer_heads_is_repeated_for_the_other():
    keys, values = torch.arange(2.0).reshape(1, 2, 1, 1), torch.zeros(1, 4, 1, 3)
    wide, same = widened(keys, values)
    assert wide.flatten().tolist() == [0, 0, 1, 1]
    assert same is values or torch.equal(same, values)
