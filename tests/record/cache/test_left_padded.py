"""Batches that are filled at the left, whose positions count what is shown: no text loses rows."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB, ROOM = 16, 2, 40, 24
PROMPTS = ([7, 12, 3], [3, 9, 4, 1, 7, 5])


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("kept", torch.zeros(2, len(PROMPTS), HEADS, ROOM, WIDTH // HEADS))
        self.written = 0

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        end = self.written + x.shape[1]
        self.kept[0, :, :, self.written : end], self.kept[1, :, :, self.written : end] = k, v
        self.written = end
        y = nn.functional.scaled_dot_product_attention(q, *self.kept, attn_mask=mask[:, None])
        return x + self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(ROOM, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, ids, input_pos, mask):
        x = self.tokens(ids) + self.places(input_pos).view(*ids.shape, -1)
        for layer in self.layers:
            x = layer(x, mask)
        return x @ self.tokens.weight.T


@torch.no_grad()
def decode(model, *, fills_see_themselves=True, steps=5):
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in PROMPTS])
    text = torch.cat([ids != 0, torch.ones(len(PROMPTS), ROOM - longest, dtype=torch.bool)], 1)
    places = (text.int().cumsum(1) - 1).clamp(min=0)
    mask = text[:, None, :] & torch.ones(ROOM, ROOM, dtype=torch.bool).tril()
    if fills_see_themselves:
        mask |= torch.eye(ROOM, dtype=torch.bool)
    for layer in model.layers:
        layer.written = 0
    logits = model(ids, places[:, :longest], mask[:, :longest])
    for end in range(longest, longest + steps - 1):
        ids = logits[:, -1:].argmax(-1)
        logits = model(ids, places[:, end], mask[:, end, None])


def test_positions_that_count_what_is_shown_take_no_rows_off(tmp_path):
    model = Model()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        decode(model)
    trace = kvtrace.open(tmp_path / "a.kvt")

    assert not any(step.events for step in trace)
    assert [trace.cache(n, layer=0).keys.shape[1] for n in range(5)] == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("themselves", [True, False])
def test_filling_that_sees_itself_alone_is_no_branch_of_a_tree(themselves, tmp_path):
    model = Model()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        decode(model, fills_see_themselves=themselves)
    trace = kvtrace.open(tmp_path / "a.kvt")

    assert all(trace.compared(n) is not None for n in range(5))
    assert not any("branches" in one.text for one in trace.notes)
