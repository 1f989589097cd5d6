"""A text that a model computes several times at once, and layouts that look like it."""

import pytest
import torch
from torch import nn

from kvtrace.record.flow.watch import FlowWatch

IDS = torch.tensor([[3, 5, 7, 9]])


class Model(nn.Module):
    """Two layers; whoever is next to it gives the axes of queries and keys."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))

    def forward(self, ids):
        x = self.begun(self.embed(ids))
        for layer in self.layers:
            q, k, v = self.heads(layer(x))
            scores = q @ k.mT * q.shape[-1] ** -0.5
            later = torch.ones(scores.shape[-2:]).triu(1).bool()
            scores = scores.masked_fill(later, -torch.inf)
            x = x + self.joined(scores.softmax(-1) @ v)
        return x

    def joined(self, y):
        return y.movedim(-2, 1).flatten(2)


class Guided(Model):
    """With its condition and without, in one batch."""

    def begun(self, x):
        return torch.cat((x + 1, x))

    def heads(self, x):
        return x.unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)


class InWindows(Model):
    """Heads in front, then windows of two tokens, each of which sees itself alone."""

    def begun(self, x):
        return x

    def heads(self, x):
        return x.unflatten(-1, (3, 2, 16)).unflatten(1, (2, 2)).permute(3, 0, 4, 1, 2, 5)[:, 0]

    def joined(self, y):
        return y.permute(1, 2, 0, 3).reshape(1, 4, 32)


class Grouped(Model):
    """Two kv heads, each given out to two query heads along an axis of its own."""

    def begun(self, x):
        return x

    def heads(self, x):
        q, k, v = (one.unflatten(-1, (2, 2, 8)).movedim(1, -2) for one in x.chunk(3, -1))
        return q, k[:, :, :1].expand_as(q), v[:, :, :1].expand_as(q)


@pytest.mark.parametrize(("kind", "said"), [(Guided, 1), (InWindows, 1), (Grouped, 0)])
def test_copies_and_pieces_of_one_text_count_as_heads_and_that_is_said_once(kind, said):
    calls, model = [], kind()
    with torch.no_grad(), FlowWatch(model, sink=calls.append) as watch:
        model(IDS)
    assert [one.queries.shape[:2] for one in calls] == [(1, 4)] * 2
    assert len([one for one in watch.notes if "heads lie along several axes" in one]) == said
