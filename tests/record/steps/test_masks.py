"""Masks become rules only where the rules say exactly what the mask says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.steps.masks import Compactor
from kvtrace.trace import Mask

SEQ, NEW = 12, 5
QUERY = torch.arange(NEW)[:, None] + SEQ - NEW
KEY = torch.arange(SEQ)[None]


def call(visible=None, bias=None, *, causal=False, window=None, new=NEW, sequences=1, kind="self"):
    rows = torch.zeros(sequences, 2, new, 4)
    keys = torch.zeros(sequences, 2, SEQ, 4)
    return AttentionCall(
        module="m",
        call=0,
        layer=0,
        kind=kind,
        queries=rows,
        keys=keys,
        values=keys,
        output=rows,
        scale=0.5,
        causal=causal,
        visible=visible,
        bias=bias,
        window=window,
    )


def compact(one, *, sequences=1, origin=SEQ - NEW, chunk=None):
    return Compactor(sequences, origin, chunk).compact(one, SEQ)


def test_no_mask_and_the_causal_rule():
    assert compact(call(causal=True)).mask == Mask(offset=7)
    assert compact(call(kind="encoder")).mask == Mask()
    assert compact(call(new=1)).mask == Mask(offset=11)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (KEY <= QUERY, Mask(offset=7)),
        ((KEY <= QUERY) & (KEY > QUERY - 4), Mask(offset=7, window=4)),
        ((KEY <= QUERY) & (KEY >= 3), Mask(offset=7, padding=(3,))),
        ((KEY >= 2) & (QUERY >= 0), Mask(padding=(2,))),
        ((KEY <= QUERY) & (KEY // 4 == QUERY // 4), Mask(offset=7, chunk=4, origin=7)),
        ((KEY <= QUERY) & (KEY > QUERY - 5) & (KEY >= 5), Mask(offset=7, window=5, padding=(5,))),
    ],
)
def test_a_mask_becomes_the_rules_that_made_it(visible, expected):
    found = compact(call(visible[None, None]), chunk=4)
    assert found.full is None
    assert found.mask == expected
    np.testing.assert_array_equal(found.mask.visible(0, NEW, SEQ), visible.numpy())


def test_one_query_that_does_not_see_the_left_is_padded_not_windowed():
    visible = (torch.arange(SEQ) >= 4)[None, None, None]
    assert compact(call(visible, new=1)).mask == Mask(offset=11, padding=(4,))
    assert compact(call(visible, new=1, window=8)).mask == Mask(offset=11, window=8)


def test_padding_differs_by_sequence():
    causal = (KEY <= QUERY)[None] & (KEY[None] >= torch.tensor([0, 6])[:, None, None])
    found = compact(call(causal[:, None], sequences=2), sequences=2)
    assert found.mask == Mask(offset=7, padding=(0, 6))


def test_a_mask_that_no_rule_makes_is_kept_whole():
    visible = (KEY <= QUERY)[None, None].clone()
    visible[0, 0, 2, 1] = False
    found = compact(call(visible))
    assert found.mask.full
    np.testing.assert_array_equal(found.full.astype(bool), visible.numpy())


def test_a_mask_that_differs_by_head_is_kept_for_each():
    visible = (KEY <= QUERY)[None, None].repeat(1, 2, 1, 1)
    visible[0, 1, :, 0] = False
    found = compact(call(visible))
    assert found.mask.full
    assert found.full.shape == (1, 2, NEW, SEQ)


def test_a_bias_is_stored_beside_the_rules():
    bias = torch.randn(1, 2, NEW, SEQ)
    found = compact(call(KEY[None, None] <= QUERY, bias))
    assert found.mask == Mask(offset=7, bias=True)
    np.testing.assert_array_equal(found.bias, bias.numpy())


def test_one_mask_object_is_looked_at_once():
    visible = (KEY <= QUERY)[None, None]
    compactor = Compactor(1, 7)
    assert compactor.compact(call(visible), SEQ) is compactor.compact(call(visible), SEQ)
