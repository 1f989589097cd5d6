"""Loops over the texts of a batch: one attention of several sequences, however they slice it."""

import pytest
import torch
import torch.nn.functional as F

from builders.attentions import DIM, HEADS, Model, hidden, token_ids, turned, with_sdpa
from kvtrace.record.flow import FlowWatch


def three_axes(q, k, v):
    shown = ~hidden(q, k)
    q, k, v = turned(q, k, v)
    texts = [
        F.scaled_dot_product_attention(*text, attn_mask=shown) for text in zip(q, k, v, strict=True)
    ]
    return torch.stack(texts).transpose(1, 2)


def four_axes(q, k, v):
    shown = ~hidden(q, k)
    texts = [x.split(1) for x in turned(q, k, v)]
    found = [
        F.scaled_dot_product_attention(*text, attn_mask=shown) for text in zip(*texts, strict=True)
    ]
    return torch.cat(found).transpose(1, 2)


def into_a_buffer(q, k, v):
    out, shown = torch.zeros_like(q), ~hidden(q, k)
    for number, text in enumerate(zip(*turned(q, k, v), strict=True)):
        out[number] = F.scaled_dot_product_attention(*text, attn_mask=shown).transpose(0, 1)
    return out


def masks_of_each(q, k, v):
    """The second text hides the first token from all but itself."""
    shown = (~hidden(q, k))[None].repeat(len(q), 1, 1)
    shown[1, 1:, 0] = False
    q, k, v = turned(q, k, v)
    texts = zip(q, k, v, shown, strict=True)
    found = [F.scaled_dot_product_attention(*text[:3], attn_mask=text[3]) for text in texts]
    return torch.stack(found).transpose(1, 2)


def masks_of_each_at_once(q, k, v):
    shown = (~hidden(q, k))[None].repeat(len(q), 1, 1)
    shown[1, 1:, 0] = False
    q, k, v = turned(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=shown[:, None]).transpose(1, 2)


def merged(q, k, v):
    shown, batch = ~hidden(q, k), len(q)
    q, k, v = (x.flatten(0, 1) for x in turned(q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
    return out.unflatten(0, (batch, HEADS)).transpose(1, 2)


def heads_one_by_one(q, k, v):
    shown = ~hidden(q, k)
    heads = zip(*(x.unbind(2) for x in (q, k, v)), strict=True)
    return torch.stack([F.scaled_dot_product_attention(*x, attn_mask=shown) for x in heads], 2)


def halves_of_heads(q, k, v):
    """Two attentions over halves of the features, each with all heads and texts in one axis."""
    shown, batch = ~hidden(q, k), len(q)
    q, k, v = (x.flatten(0, 1) for x in turned(q, k, v))
    halves = zip(*(x.chunk(2, -1) for x in (q, k, v)), strict=True)
    found = [F.scaled_dot_product_attention(*x, attn_mask=shown) for x in halves]
    return torch.cat(found, -1).unflatten(0, (batch, HEADS)).transpose(1, 2)


def _calls(attention, sequences):
    model, calls = Model(attention), []
    with torch.no_grad(), FlowWatch(model, sink=calls.append):
        model(token_ids(sequences, 6))
    return calls


def _seen(call):
    new, seq = call.queries.shape[2], call.keys.shape[2]
    shape = (*call.queries.shape[:2], new, seq)
    shown = torch.ones(shape, dtype=torch.bool) if call.visible is None else call.visible
    return call.queries, call.keys, call.values, call.output, shown.expand(shape)


@pytest.mark.parametrize("sequences", [2, HEADS])
@pytest.mark.parametrize(
    ("loop", "at_once"),
    [
        (three_axes, with_sdpa),
        (four_axes, with_sdpa),
        (into_a_buffer, with_sdpa),
        (masks_of_each, masks_of_each_at_once),
        (merged, with_sdpa),
        (heads_one_by_one, with_sdpa),
    ],
)
def test_a_batch_is_read_alike_however_its_texts_and_heads_are_sliced(loop, at_once, sequences):
    looped, expected = _calls(loop, sequences), _calls(at_once, sequences)
    assert [call.queries.shape for call in looped] == [call.queries.shape for call in expected]
    for one, other in zip(looped, expected, strict=True):
        for mine, theirs in zip(_seen(one), _seen(other), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_attentions_over_halves_of_merged_heads_are_no_texts():
    shapes = [tuple(call.queries.shape) for call in _calls(halves_of_heads, 2)]
    assert shapes == 4 * [(2, HEADS, 6, DIM // 2)]
