"""What looks like attention and is none: nothing is reported, and nothing is complained about."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from builders.attentions import Attention, matmul, token_ids
from kvtrace.record.flow import FlowWatch


class Around(nn.Module):
    """An embedding, one mixer, a head."""

    def __init__(self, mixer):
        torch.manual_seed(0)
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.mixer = mixer()
        self.head = nn.Linear(32, 50)

    def forward(self, ids):
        return self.head(self.mixer(self.embed(ids)))


class Router(nn.Module):
    """Softmax over experts, a weighted sum of what they say."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(32, 4))
        self.experts = nn.Parameter(torch.randn(4, 32, 32))

    def forward(self, x):
        share = (x @ self.gate).softmax(-1)
        each = torch.einsum("btd,edf->btef", x, self.experts)
        return torch.einsum("bte,btef->btf", share, each)


class CosineRouter(Router):
    """The same with normalised expert vectors, as swin-v2 MoE has it."""

    def forward(self, x):
        keys = F.normalize(self.gate.t().float(), dim=-1)
        share = (F.normalize(x, dim=-1) @ keys.t() * 10).softmax(-1)
        return torch.einsum("bte,btef->btf", share, torch.einsum("btd,edf->btef", x, self.experts))


class SquaredNorm(nn.Module):
    """A product with itself, summed with the axis kept."""

    def forward(self, x):
        return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)


class LinearAttention(nn.Module):
    """softmax(q) (softmax(k)ᵀ v): no scores anywhere."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        return (q.softmax(-1) @ (k.softmax(-2).mT @ v)).transpose(1, 2).flatten(2)


class Retention(nn.Module):
    """q·kᵀ times a decay, never normalised."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        n = torch.arange(x.shape[1])
        decay = (0.9 ** (n[:, None] - n[None, :]).clamp(min=0)).tril()
        return ((q @ k.mT * decay) @ v).transpose(1, 2).flatten(2)


class LayerPooling(nn.Module):
    """Every token weighs earlier layers' outputs by a learned query, through SDPA."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(32))

    def forward(self, x):
        stacked = torch.stack([x, x.tanh(), x.sin()], dim=2)
        query = self.query.float().view(-1, 32).expand(*stacked.shape[:2], -1, -1)
        return F.scaled_dot_product_attention(query, stacked, stacked).squeeze(2)


class TokenPooling(nn.Module):
    """Every token weighs its own history of layers by a query of its own."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(32, 32)

    def forward(self, x):
        stacked = torch.stack([x, x.tanh(), x.sin()], dim=2)
        scores = torch.einsum("btd,btld->btl", self.q(x), stacked) / math.sqrt(32)
        return torch.einsum("btl,btld->btd", scores.softmax(-1), stacked)


class Vocabulary(nn.Module):
    """Soft embeddings: a softmax over the vocabulary times the table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 32)

    def forward(self, x):
        weight = self.table.weight.to(torch.float32)
        return torch.softmax(x @ weight.t() / 0.7, dim=-1) @ weight


class Recurrence(nn.Module):
    """A gated recurrence with a softmax on its features."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(32, 32, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0] * x.softmax(-1)


class Squeeze(nn.Module):
    """Squeeze and excitation: channels weighed by a softmax of their mean."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(32, 8), nn.Linear(8, 32)

    def forward(self, x):
        return x * self.up(self.down(x.mean(1, keepdim=True)).relu()).softmax(-1)


class MemoryBank(nn.Module):
    """Retrieval from learned slots: keys and values are parameters, normalised on the way."""

    def __init__(self):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(12, 32))
        self.told = nn.Parameter(torch.randn(12, 32))

    def forward(self, x):
        near = F.normalize(x, dim=-1) @ F.normalize(self.slots, dim=-1).T
        return (near / 0.1).softmax(-1) @ self.told


class Contrastive(nn.Module):
    """An auxiliary loss over pairs of tokens: scores and a softmax, and nothing is mixed."""

    def forward(self, x):
        flat = F.normalize(x.flatten(0, 1), dim=-1)
        chance = (flat @ flat.T / 0.07).softmax(-1)
        return x * (1 + 0 * -chance.diagonal().log().mean())


class ChannelAttention(nn.Module):
    """Features attend to features over all tokens, as cross-covariance attention has it."""

    def forward(self, x):
        turned = F.normalize(x, dim=1).mT
        return (turned @ turned.mT).softmax(-1).matmul(x.mT).mT


NEGATIVES = (
    Squeeze,
    MemoryBank,
    Contrastive,
    ChannelAttention,
    Router,
    CosineRouter,
    LinearAttention,
    SquaredNorm,
    Retention,
    LayerPooling,
    TokenPooling,
    Vocabulary,
    Recurrence,
)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("mixer", NEGATIVES, ids=lambda one: one.__name__)
def test_no_attention_is_reported(mixer, tokens):
    model = Around(mixer)
    calls = []
    with FlowWatch(model, sink=calls.append) as watch, torch.no_grad():
        model(token_ids(2, 7))
        model(token_ids(2, tokens))
    assert calls == []
    told = [one for one in watch.unseen if "named attention" not in one]
    assert told == []


class Squares(nn.Module):
    """Attention without a softmax or sigmoid: not what a trace can say."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT).relu().square() @ v).transpose(1, 2).flatten(2)


class SquaresAttention(Squares):
    """The same under a name that promises attention."""


def test_a_module_named_attention_that_was_not_seen_is_named():
    model = Around(SquaresAttention)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(1, 5))
    assert calls == []
    assert watch.unseen == ("mixer: named attention, but none was seen in it",)


class PrepareForAttention(nn.Module):
    """Projects for whoever calls it to attend with."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        return self.linear(x).view(*x.shape[:-1], 4, 8)


class Prepared(nn.Module):
    """Attends with what modules named attention projected."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (PrepareForAttention() for _ in range(3))

    def forward(self, x):
        return matmul(self.q(x), self.k(x), self.v(x)).flatten(2)


def test_a_module_named_attention_that_only_projects_is_not_missed():
    model = Around(Prepared)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(1, 5))
    assert [call.module for call in calls] == ["mixer"]
    assert watch.unseen == ()
    assert watch.projections == {"mixer.q", "mixer.k", "mixer.v"}


class WeightsAttention(nn.Module):
    """Gives the weights to whoever called it."""

    def forward(self, q, k):
        return (q @ k.mT / 8**0.5).softmax(-1)


class Halved(Squares):
    """Multiplies what a module named attention made of queries and keys with the values."""

    def __init__(self):
        super().__init__()
        self.weights = WeightsAttention()

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        return (self.weights(q, k) @ v).transpose(1, 2).flatten(2)


def test_a_module_whose_weights_its_caller_multiplies_was_seen_whatever_its_name():
    model = Around(Halved)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        for tokens in (5, 6, 7):
            model(token_ids(1, tokens))
    assert len(calls) == 3
    assert watch.unseen == ()


class GatheredAttention(nn.Module):
    """Each token attends to rows gathered for it alone; two query heads share those of one."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        batch, time = x.shape[:2]
        q = self.q(x).view(batch, time, 2, 2, 8).permute(0, 2, 3, 1, 4)
        k, v = self.kv(x).view(batch, time, 2, 2, 8).permute(2, 0, 3, 1, 4)
        near = (torch.arange(time)[:, None] - torch.arange(3)).clamp(min=0)
        scores = torch.einsum("bhgtd,bhtkd->bhgtk", q, k[:, :, near]) * 8**-0.5
        out = torch.einsum("bhgtk,bhtkd->bhgtd", scores.softmax(-1), v[:, :, near])
        return out.permute(0, 3, 1, 2, 4).flatten(2)


def test_rows_that_are_gathered_for_each_token_are_named_and_no_heads_are_made_of_them():
    model = Around(GatheredAttention)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(2, 7))
    assert calls == []
    (said,) = watch.unseen
    assert said.endswith("none was seen in it: each token attends to a set of its own")


class Tempered(Squares):
    """Weights raised to a power after the softmax and not normalised again."""

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT).softmax(-1) * 1.5 @ v).transpose(1, 2).flatten(2)


def test_weights_changed_after_the_softmax_are_told_of_and_not_reported():
    model = Around(Tempered)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(1, 5))
    assert calls == []
    (sentence,) = watch.unseen
    assert sentence.startswith("mixer (test_silence.py:")
    assert "softmax(q·kᵀ·scale)·v differs from its output" in sentence
    assert sentence.endswith("after mul")


class PoolsThenAttends(nn.Module):
    """Single-query attention whose number of heads equals the length of the prompt before it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(matmul), Attention(matmul)

    def forward(self, x):
        last, _ = self.second(x[:, -1:], self.first(x)[1])
        return last


def test_an_axis_as_long_as_the_prompt_that_keeps_its_length_holds_heads():
    model = Around(PoolsThenAttends)
    with FlowWatch(model, sink=(calls := []).append) as watch, torch.no_grad():
        model(token_ids(1, 4))
        calls.clear()
        model(token_ids(1, 6))
    assert [call.queries.shape[1] for call in calls] == [4, 4]
    assert any("a prompt of 4 tokens is as long as another axis" in one for one in watch.unseen)


class AttendsAgain(PoolsThenAttends):
    """The same by one module, which attends to all tokens first."""

    def forward(self, x):
        last, _ = self.first(x[:, -1:], self.first(x)[1])
        return last


def test_what_attended_to_tokens_before_has_heads_where_they_are_as_many_as_tokens():
    model = Around(AttendsAgain)
    with FlowWatch(model, sink=(calls := []).append) as watch, torch.no_grad():
        model(token_ids(1, 4))
    assert [(*call.queries.shape[1:3], call.keys.shape[2]) for call in calls] == [
        (4, 4, 4),
        (4, 1, 5),
    ]
    assert watch.unseen == ()


class TakesNewest(nn.Module):
    """Is given all tokens so far, and computes the newest one's rows by a fused call."""

    def __init__(self):
        super().__init__()
        self.qkv, self.past = nn.Linear(32, 96), []

    def forward(self, x):
        q, k, v = self.qkv(x[:, -1:]).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        self.past.append((k, v))
        k, v = (torch.cat(rows, 2) for rows in zip(*self.past, strict=True))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_fused_call_keeps_its_heads_in_a_step_of_as_many_tokens():
    model = Around(TakesNewest)
    with FlowWatch(model, sink=(calls := []).append) as watch, torch.no_grad():
        for tokens in range(2, 7):
            model(token_ids(1, tokens))
    assert [(*call.queries.shape[1:3], call.keys.shape[2]) for call in calls] == [
        (4, 1, rows) for rows in range(1, 6)
    ]
    assert watch.unseen == ()
