"""Attention that kvtrace does not see in some steps, and what is said of what follows it."""

import torch
import torch.nn.functional as F
from torch import nn

from confusion.score import recorded
from kvtrace.analysis.checks import DIVERGED, UNCHECKED, check

WIDTH, HEADS = 32, 4


class Layer(nn.Module):
    """Attention that keeps its rows, and drops weights out where it reads some of them."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, cache):
        q, k, v = (
            one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in self.project(x).chunk(3, -1)
        )
        if self in cache:
            k, v = torch.cat((cache[self][0], k), 2), torch.cat((cache[self][1], v), 2)
        later = self in cache
        cache[self] = k, v
        return self.out((self.other if later else self.usual)(q, k, v).transpose(1, 2).flatten(2))

    def usual(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def other(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(96, WIDTH), nn.Linear(WIDTH, 96)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, ids, cache=None):
        cache, x = {} if cache is None else cache, self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, cache)
        return self.head(x)


def test_a_difference_begins_at_attention_that_was_not_seen():
    torch.manual_seed(0)
    model, tokens = Model().eval(), torch.arange(3, 17)[None]

    @torch.no_grad()
    def drive():
        cache = {}
        for start, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
            model(tokens[:, start:end], cache)

    report = check(recorded(model, drive))
    assert report.verdict == DIVERGED
    first = report.findings[0]
    assert (first.name, first.step, first.layer) == ("WEIGHTS-NOT-NORMALISED", 1, 0)
    assert "attention of layers.0 drops weights out in this step" in first.evidence


def test_a_step_whose_attention_could_not_be_read_is_not_compared():
    torch.manual_seed(0)

    class Mapped(Layer):
        """The last step runs where no row can be read, with scores a little larger."""

        def other(self, q, k, v):
            if k.shape[2] < 11:
                return F.scaled_dot_product_attention(q, k, v)

            def single(q, k, v):
                return (q @ k.mT * 1.1 * q.shape[-1] ** -0.5).softmax(-1) @ v

            return torch.vmap(single)(q, k, v)

    model, tokens = Model().eval(), torch.arange(3, 17)[None]
    model.layers = nn.ModuleList(Mapped() for _ in range(2)).eval()

    @torch.no_grad()
    def drive():
        cache = {}
        for start, end in ((0, 9), (9, 10), (10, 11)):
            model(tokens[:, start:end], cache)

    trace = recorded(model, drive)
    assert not trace.step(2).attending
    assert trace.meta.unseen
    report = check(trace)
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "step 2 is the first that was not" in report.reason
