"""Scores that are a sum of products, as relative positions along two axes make them."""

import torch

from kvtrace.record.flow.marks.contraction import of_matmul
from kvtrace.record.flow.marks.mark import start, summed


def test_scores_that_came_of_the_same_product_can_be_summed():
    # as the row's and the column's part of a decomposed relative position are
    left, right = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    scores = start(of_matmul(left, right, left @ right))
    both = summed(scores, scores.scaled(0.5))
    assert both.axes == scores.axes
    assert [one.alpha for one in both.products] == [1.0, 0.5]
