"""Loops without a cache whose window moves over a text: positions go on with it, where told."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace

WIDTH, HEADS, VOCAB, ROOM = 32, 4, 64, 8


class Model(nn.Module):
    """Keys and queries are rotated by their positions in the whole text."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.out = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, idx, targets=None, pos_offset=0):
        q, k, v = self.qkv(self.tokens(idx)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        angles = (pos_offset + torch.arange(idx.shape[1]))[:, None] * torch.tensor(
            [1, 0.1, 0.05, 0.01]
        )
        cos, sin = angles.cos(), angles.sin()

        def turned(x):
            one, two = x.chunk(2, -1)
            return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)

        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2)), None


@torch.no_grad()
def generate(model, ids, steps, *, late=0):
    for _ in range(steps):
        window = ids[:, -ROOM:]
        begins = ids.shape[1] - window.shape[1]
        logits, _ = model(window, pos_offset=begins + late * (begins > 0))
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("mode", ["once", "each"])
@pytest.mark.parametrize("sequences", [1, 2])
def test_a_window_is_compared_where_its_text_has_moved_on_to(sequences, mode, tmp_path):
    ids = torch.arange(6 * sequences).view(sequences, 6)
    with kvtrace.record(model := Model(), tmp_path / "a.kvt", recompute=mode):
        generate(model, ids, 6)
    trace = kvtrace.open(tmp_path / "a.kvt")

    assert trace.step(5).positions == ((3, 4, 5, 6, 7, 8, 9, 10),) * sequences
    assert all(float(trace.compared(step).relative.max()) < 1e-5 for step in range(6))
    assert not kvtrace.check(tmp_path / "a.kvt").findings


def test_a_window_that_is_told_to_begin_elsewhere_is_found(tmp_path):
    with kvtrace.record(model := Model(), tmp_path / "a.kvt"):
        generate(model, torch.arange(6)[None], 6, late=1)
    (found, *_) = kvtrace.check(tmp_path / "a.kvt").findings

    assert (found.name, found.step) == ("POSITION-ROPE", 3)
