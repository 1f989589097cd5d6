"""Models that keep modules where torch does not know of them, and embeddings of people's own."""

import pytest
import torch
from torch import nn

import kvtrace


class TokenEmbedding(nn.Module):
    """Looks ids up, and reads tokens off rows."""

    def __init__(self):
        super().__init__()
        self.rows, self.reads = nn.Parameter(torch.randn(20, 16)), nn.Parameter(torch.randn(16, 20))

    def forward(self, ids, reads=False):
        return ids @ self.reads if reads else self.rows[ids]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x, past=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return x + y.transpose(1, 2).flatten(2), (k, v)


class Unlisted(nn.Module):
    """Two layers that torch does not know of, under one table."""

    def __init__(self, embed):
        super().__init__()
        torch.manual_seed(0)
        self.held = [embed(), Layer(), Layer()]

    def forward(self, ids, past=(None, None)):
        return self.continued(ids, past)

    def continued(self, ids, past):
        embed, *layers = self.held
        x, kept = embed(ids), []
        for layer, one in zip(layers, past, strict=True):
            x, pair = layer(x, one)
            kept.append(pair)
        return self.read(x), kept

    def read(self, x):
        return self.held[0](x, reads=True)


class Tied(Unlisted):
    """A table that torch knows of, and nothing else."""

    def __init__(self):
        super().__init__(lambda: None)
        self.embed = nn.Embedding(20, 16)
        self.held[0] = self.embed.forward

    def read(self, x):
        return x @ self.embed.weight.T


IDS = torch.tensor([[5, 9, 3, 7]])


def lengths(path):
    trace = kvtrace.open(path)
    caches = (trace.step(number).caches for number in trace.numbers)
    return len(trace.meta.sites), [one[0].length_after for one in caches]


def run_three(call):
    ids, past = IDS, (None, None)
    with torch.no_grad():
        for _ in range(3):
            logits, past = call(ids, past)
            ids = logits[:, -1:].argmax(-1)


def test_steps_of_a_method_begin_where_an_embedding_of_ones_own_is_called(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):
        run_three(Unlisted(TokenEmbedding).continued)
    assert lengths(tmp_path / "a.kvt") == (2, [4, 5, 6])


@pytest.mark.parametrize("make", [Tied, lambda: Unlisted(TokenEmbedding)])
def test_a_model_is_one_though_torch_knows_of_its_table_alone_or_of_nothing(make, tmp_path):
    model = make()
    with kvtrace.record(tmp_path / "a.kvt") as run:
        run_three(model)
    assert [one.model for one in run.report.traces] == [type(model).__name__]
    assert lengths(tmp_path / "a.kvt") == (2, [4, 5, 6])
