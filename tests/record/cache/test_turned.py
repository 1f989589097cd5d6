"""Keys that were rotated are found in the tensor that holds them unrotated, and in no other."""

import pytest
import torch

from kvtrace.record.cache.own.holders import Holder
from kvtrace.record.cache.own.unrotated import find_turned


def rotated(rows, neighbours):
    """RoPE by hand: [sequences, heads, seq, dim]."""
    dim = rows.shape[3]
    angles = torch.arange(rows.shape[2])[:, None] / 100 ** (torch.arange(dim // 2) * 2 / dim)
    turn = torch.polar(torch.ones_like(angles), angles)
    if neighbours:
        pairs = torch.view_as_complex(rows.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)
    pairs = torch.complex(*rows.chunk(2, dim=-1)) * turn
    return torch.cat([pairs.real, pairs.imag], dim=-1)


@pytest.mark.parametrize("neighbours", [True, False])
def test_keys_kept_unrotated_are_found(neighbours):
    kept = torch.randn(1, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(1, 2, 16, 8, generator=torch.Generator().manual_seed(1))
    among = [Holder("other", other, 1), Holder("kept", kept.transpose(1, 2), 1)]
    found = find_turned(rotated(kept[:, :, :9], neighbours), [8, 7, 6], among)
    assert (found.name, found.shape, found.axis) == ("kept", (1, 16, 2, 8), 1)


def test_keys_that_nothing_holds_are_not_found():
    rows = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(1, 2, 16, 8, generator=torch.Generator().manual_seed(1))
    assert find_turned(rows, [8, 7], [Holder("other", other, 1)]) is None
    assert find_turned(rows, [8, 7], [Holder("zeros", torch.zeros(1, 2, 16, 8), 1)]) is None
    assert find_turned(torch.zeros(1, 2, 9, 8), [8, 7], [Holder("zeros", other * 0, 1)]) is None


@pytest.mark.parametrize("text", [[5, 5, 5, 5, 1, 2], [1, 5, 5, 5, 5, 2], [2, 3, 4, 1, 5, 5]])
def test_rows_of_a_token_that_the_text_repeats_do_not_hide_who_holds_them(text):
    table = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    kept = table[text][None, None]  # as the first layer has them: nothing tells places apart yet
    slots = list(range(len(text)))[::-1]
    found = find_turned(rotated(kept, True), slots, [Holder("kept", kept, 1)])
    assert (found.name, found.axis) == ("kept", 2)
