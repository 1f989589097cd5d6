"""Models that are given all tokens in each step, and put zeros in the place of old queries."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.driving.trying.search import Search


class Layer(nn.Module):
    """Keeps its rows; of a text that is one token longer, it computes those of that token.

    Attributes:
        fused: Attends in one call of torch.
        lost: The value of the newest token is never kept.
    """

    def __init__(self, fused, lost):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.up, self.fused, self.lost = nn.Linear(16, 16), fused, lost
        self.keys = self.values = None

    def forward(self, x, use_kv_cache):
        rows, kept = x.shape[1], self.keys if use_kv_cache else None
        if kept is None or kept.shape[1] != rows - 1:
            q, k, v = self.q(x), self.k(x), self.v(x)
        else:
            new = x[:, -1:]
            q = torch.cat((torch.zeros_like(x[:, :-1]), self.q(new)), 1)
            k = torch.cat((kept, self.k(new)), 1)
            v = torch.cat((self.values, self.v(new) * (not self.lost)), 1)
        if use_kv_cache:
            self.keys, self.values = k, v
        q, k, v = (one.view(1, rows, 2, 8).transpose(1, 2) for one in (q, k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            hidden = torch.full((rows, rows), -torch.inf).triu(1)
            y = (q @ k.mT / 8**0.5 + hidden).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2)
        return x + self.up(x).tanh()


class Refed(nn.Module):
    """Two layers, and the logits of the last row, or of all."""

    def __init__(self, fused=True, lost=False, last=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.ModuleList(Layer(fused, lost) for _ in range(2))
        self.last = last

    def forward(self, x, use_kv_cache=False):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, use_kv_cache)
        return self.head(x[:, -1:] if self.last else x)


TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@torch.no_grad()
def run(model, path):
    with kvtrace.record(model, path, keep_rows=True):
        for end in range(4, 9):
            model(TOKENS[:, :end], use_kv_cache=True)
    return kvtrace.open(path)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_zeros_in_the_place_of_old_queries_are_no_queries_of_those_tokens(fused, last, tmp_path):
    trace = run(Refed(fused, last=last), tmp_path / "a.kvt")
    assert [step.new for step in trace] == [4, 1, 1, 1, 1]
    assert [step.positions[0] for step in trace] == [(0, 1, 2, 3), (4,), (5,), (6,), (7,)]
    assert trace.meta.cache_layers[0].kind == "dynamic"
    said = [one for one in trace.meta.not_recorded if "zeros stand in the place of queries" in one]
    assert [one.partition(":")[0] for one in said] == ["layers.0", "layers.1"]
    report = check(trace)
    assert (report.verdict, report.findings) == ("equal within rounding", ())


def test_a_row_that_such_a_model_keeps_wrongly_is_named(tmp_path):
    report = check(run(Refed(lost=True), tmp_path / "a.kvt"))
    assert [(one.name, one.step) for one in report.findings] == [("V-NOT-WRITTEN", 1)]


@torch.no_grad()
def test_queries_of_zeros_do_not_change_what_comes_out(tmp_path):
    plain, watched = Refed(), Refed()
    expected = [plain(TOKENS[:, :end], use_kv_cache=True) for end in range(4, 9)]
    with kvtrace.record(watched, tmp_path / "a.kvt"):
        found = [watched(TOKENS[:, :end], use_kv_cache=True) for end in range(4, 9)]
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("last", [True, False])
def test_a_cache_inside_that_takes_the_newest_of_all_tokens_is_found_by_its_flag(last):
    found = Search(Refed(last=last)).run()
    assert str(found.way) == "model(x [1, all], use_kv_cache=True)"
    assert "all tokens at every step, of which it takes the new ones" in found.said[0]


class Looked(Refed):
    """Its flag makes it keep what came out, of all tokens that it computes again."""

    def forward(self, x, use_kv_cache=False):
        y = super().forward(x)
        self.seen = y if use_kv_cache else None
        return y


def test_a_flag_that_keeps_what_is_computed_again_is_no_cache_of_all_tokens():
    assert Search(Looked()).run().way.feeds == "new"
