"""Queries and keys that the length of the text stretches against each other, as in xPos."""

import pytest
import torch

import kvtrace
from builders.attentions import DIM, Model, matmul, token_ids
from kvtrace.analysis.checks import check

EACH = torch.linspace(0.9995, 1.0004, DIM)
"""How much each feature is stretched by one more token."""


@pytest.mark.parametrize("right", [True, False])
@torch.no_grad()
def test_a_stretch_of_queries_that_their_keys_undo_is_no_bug_and_one_they_do_not_is(
    right, tmp_path
):
    def stretched(q, k, v):
        by = EACH ** k.shape[1]
        return matmul(q * by, k / by if right else k, v)

    model, ids, past = Model(stretched), token_ids(1, 12), None
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for new in (ids[:, :6], *ids[:, 6:].split(1, 1)):
            _, past = model(new, past)
    found = check(kvtrace.open(tmp_path / "a.kvt"))
    assert found.ok == right
    assert [one.name for one in found.findings if right] == ["LENGTH-DEPENDENT-POSITIONS"] * right
