"""A raw call of the attention interface says what was consumed, however it was called."""

import torch

from kvtrace.record.capture.attention.facts import ModuleFacts
from kvtrace.record.capture.attention.masks import MaskReader
from kvtrace.record.capture.attention.read import read

FACTS = ModuleFacts("layers.0", 0, "self", True, None, None, "model.py:1")


def rows(sequences=2, seq=5, heads=2, dim=4):
    return torch.arange(sequences * heads * seq * dim, dtype=torch.float32).reshape(
        sequences, heads, seq, dim
    )


def called(q, k, v, mask=None, by_name=False, **more):
    """What is read of a call whose output is the queries, [sequences, new, heads, dim]."""
    args = (None,) if by_name else (None, q, k, v, mask)
    named = {"query": q, "key": k, "value": v, "attention_mask": mask} if by_name else {}
    raw = args, named | more, (q.transpose(1, 2), None), False, 0
    return read(FACTS, raw, 0, MaskReader())


def test_arguments_by_name_are_those_by_place():
    q, k, v = rows(seq=1), rows(), -rows()
    mask = torch.tensor([True, False, True, True, True]).expand(2, 1, 1, 5)
    one, other = called(q, k, v, mask), called(q, k, v, mask, by_name=True)
    for name in ("queries", "keys", "values", "output", "visible"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(other.keys, k)
    assert other.visible[1, 0, 0].tolist() == [True, False, True, True, True]


def test_one_sequence_of_keys_serves_every_sequence_of_queries():
    q, k, v = rows(seq=1), rows(sequences=1), -rows(sequences=1)
    found = called(q, k, v)
    assert found.keys.shape == (2, 2, 5, 4)
    assert torch.equal(found.keys[1], k[0])
    assert torch.equal(found.values[1], v[0])


def test_one_sequence_of_queries_is_asked_of_every_sequence_of_keys():
    q, k = rows(sequences=1, seq=1), rows()
    found = called(q, k, -k)
    assert found.queries.shape == (2, 2, 1, 4)
    assert torch.equal(found.queries[1], q[0])


def test_a_prompt_in_a_longer_buffer_attends_to_as_many_rows_as_it_has():
    q, k = rows(seq=3), rows(seq=5)
    found = called(q, k, -k, is_causal=True)
    assert found.causal
    assert torch.equal(found.keys, k[:, :, :3])
    assert torch.equal(found.values, -k[:, :, :3])


def test_a_prompt_of_which_fewer_rows_were_kept_is_counted_from_the_first_on_both_sides():
    q, k = rows(seq=5), rows(seq=3)
    found = called(q, k, -k, is_causal=True)
    assert not found.causal
    seen = found.visible[0, 0].int().tolist()
    assert seen == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_a_mask_over_more_slots_than_there_are_keys_is_cut():
    q, k = rows(seq=1), rows()
    mask = torch.tensor([0.0, -1e9, 0.5, 0.0, 0.0, 0.0, 0.0])[None, None, None]
    found = called(q, k, -k, mask)
    assert found.visible[0, 0, 0].tolist() == [True, False, True, True, True]
    assert found.bias[0, 0, 0].tolist() == [0.0, 0.0, 0.5, 0.0, 0.0]


def test_a_mask_over_fewer_slots_than_there_are_keys_is_none_of_theirs():
    q, k = rows(seq=1), rows()
    found = called(q, k, -k, torch.ones(2, 1, 1, 3, dtype=torch.bool))
    assert found.visible is None
    assert found.bias is None


def test_a_bias_of_positions_is_added_to_that_of_the_mask():
    q, k = rows(seq=1), rows()
    positions = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[None, None, None]
    mask = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0])[None, None, None]
    found = called(q, k, -k, mask, position_bias=positions)
    assert found.bias[0, 0, 0].tolist() == [1.0, 2.5, 3.0, 4.0, 5.0]
    assert called(q, k, -k, position_bias=positions).bias[0, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_rows_without_four_dimensions_are_no_call():
    assert called(rows()[0], rows(), rows()) is None
