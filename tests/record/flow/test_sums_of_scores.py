"""Scores that are a sum of products, as relative positions along two axes make them."""

import torch
from msgspec.structs import replace

from kvtrace.record.flow.marks.contraction import of_matmul
from kvtrace.record.flow.marks.mark import start, summed


def test_scores_that_came_of_the_same_product_can_be_summed():
    # as the row's and the column's part of a decomposed relative position are
    left, right = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    scores = start(of_matmul(left, right, left @ right))
    both = summed(scores, scores.scaled(0.5))
    assert both.axes == scores.axes
    assert [one.alpha for one in both.products] == [1.0, 0.5]


def test_a_table_of_relative_positions_is_added_to_scores_and_has_no_keys():
    # heads, tokens, features: each query has rows of its own in the table, one for every key
    queries, keys, table = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(3, 3, 4)
    scores = start(of_matmul(queries, keys.mT, queries @ keys.mT))
    turned = queries.transpose(0, 1)
    relative = start(of_matmul(turned, table.mT, turned @ table.mT))
    query, head, key = relative.axes
    relative = replace(relative, axes=(head, query, key))
    for both in (summed(scores, relative), summed(relative, scores)):
        assert both.added
        assert [one.right.shape for one in both.products] == [(2, 4, 3)]
