"""Buffers that nobody filled: whatever was in their memory, a row that is written is noticed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kvtrace.record.driving import Wish, choose_drive
from kvtrace.record.driving.trying.contents import contents


class Unfilled(nn.Module):
    """Rows are written into buffers that hold what `torch.empty` may leave: anything."""

    def __init__(self, left: float) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)
        self.rows = torch.full((2, 1, 2, 32, 8), left)

    def forward(self, ids, start_pos):
        end = start_pos + ids.shape[1]
        q, k, v = self.mix(self.embed(ids)).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        self.rows[0, :, :, start_pos:end], self.rows[1, :, :, start_pos:end] = k, v
        keys, values = self.rows[:, :, :, :end]
        causal = ids.shape[1] > 1
        x = F.scaled_dot_product_attention(q, keys, values, is_causal=causal)
        return self.head(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("left", [0.0, 3e38, float("nan"), float("inf")])
def test_a_cache_in_unfilled_memory_is_found(left):
    torch.manual_seed(0)
    found = choose_drive(Unfilled(left).eval(), Wish([1, 2, 3, 4, 5], vocabulary=20))
    assert found.said[0].endswith("the model keeps its cache inside")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool, torch.int64])
def test_one_number_that_changes_is_seen_in_any_dtype(dtype):
    model = nn.Module()
    model.register_buffer("rows", torch.zeros(3, 4, dtype=dtype).t())
    before = contents(model)
    model.rows[2, 1] = 1
    assert contents(model) != before


def test_a_cache_in_modules_that_are_no_parts_of_the_model_is_seen_to_change():
    model, cache = nn.Linear(2, 2), nn.Module()
    cache.register_buffer("rows", torch.zeros(1, 2, 3, 4))
    model.caches = [cache]
    before = contents(model)
    cache.rows[:, :, 1] = 1
    assert contents(model) != before
