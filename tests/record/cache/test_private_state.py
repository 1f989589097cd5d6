"""Caches in attributes of a module: found, named, and held from the first step on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace


@dataclass
class _State:
    """What a layer keeps while it streams: a ring of keys and values, and how many came."""

    ring: torch.Tensor
    count: int = 0


class Streaming(nn.Module):
    """Attention over a ring in a state of its own: one token at a time, unwritten slots hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)
        self._state = _State(torch.zeros(2, 1, 2, 6, 8))

    def forward(self, x):
        q, k, v = self.mix(x).view(1, 1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        state, capacity = self._state, self._state.ring.shape[3]
        state.ring[0, :, :, state.count % capacity] = k[:, :, 0]
        state.ring[1, :, :, state.count % capacity] = v[:, :, 0]
        state.count += 1
        shown = (torch.arange(capacity) < state.count)[None, None, None]
        out = F.scaled_dot_product_attention(q, state.ring[0], state.ring[1], attn_mask=shown)
        return out.transpose(1, 2).reshape(1, 1, 16)


class Model(nn.Module):
    """One such layer between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn, self.head = nn.Embedding(32, 16), Streaming(), nn.Linear(16, 32)

    def forward(self, ids):
        return self.head(self.attn(self.embed(ids)))


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    torch.manual_seed(0)
    model, path = Model().eval(), tmp_path_factory.mktemp("state") / "run.kvt"
    with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
        for token in range(1, 9):
            model(torch.tensor([[token]]))
    return kvtrace.open(path)


def test_the_state_is_named_as_code_calls_it(trace):
    assert trace.meta.cache_layers[0].where == "attn._state.ring [2, 1, 2, 6, 8]"


def test_the_first_row_is_kept_by_the_first_step(trace):
    lengths = [trace.cache_step(step.number, 0).length_after for step in trace]
    assert lengths == [1, 2, 3, 4, 5, 6, 6, 6]


class Ring(nn.Module):
    """Prefill attends to all rows; the last four are kept, and single tokens attend to those."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place, self.head = (
            nn.Embedding(8, 16),
            nn.Embedding(32, 16),
            nn.Linear(16, 8),
        )
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.keys, self.values = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)

    def forward(self, ids, start_pos):
        x = self.embed(ids)  # values know nothing of positions: equal tokens have equal ones
        at = torch.arange(start_pos, start_pos + ids.shape[1])
        placed = x + self.place(at)
        q, k, v = (
            one(rows).view(1, -1, 2, 8).transpose(1, 2)
            for one, rows in ((self.query, placed), (self.key, placed), (self.value, x))
        )
        self.keys[:, :, at[-4:] % 4], self.values[:, :, at[-4:] % 4] = k[:, :, -4:], v[:, :, -4:]
        if len(at) == 1:
            k, v = self.keys, self.values
        out = F.scaled_dot_product_attention(q, k, v, is_causal=len(at) > 1)
        return self.head(out.transpose(1, 2).flatten(2))


def test_a_ring_keeps_its_own_rows_though_other_tokens_have_equal_values(tmp_path):
    torch.manual_seed(0)
    model = Ring().eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model(torch.tensor([[1, 2, 1, 2, 1, 2, 1, 2]]), 0)
        model(torch.tensor([[1]]), 8)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.cache_step(step.number, 0).length_after for step in trace] == [4, 4]
