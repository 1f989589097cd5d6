"""Small models whose attention is followed, by a mode that sleeps, hears or is awake."""

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import fields, replace
from torch import Tensor, nn

from kvtrace.record.flow import FlowWatch, Late
from kvtrace.record.flow.marks import families

HEADS, DIM = 2, 4


def kept(calls):
    """A sink that copies what it is given."""

    def keep(call):
        tensors = {
            one.name: getattr(call, one.name).clone()
            for one in fields(call)
            if isinstance(getattr(call, one.name), Tensor)
        }
        calls.append(replace(call, **tensors))

    return keep


def asleep(model, drive, only=lambda *_: True):
    """(calls, result, watch) of a mode that may sleep."""
    calls = []
    with FlowWatch(model, sink=kept(calls), only=only) as watch:
        result = drive(model)
    return calls, result, watch


def heard(model, drive):
    """The same of one whose calls may be told when a forward is over."""
    calls = []
    keep = kept(calls)
    late = Late(ready=lambda: True, take=lambda some: [keep(call) for call in some])
    with FlowWatch(model, sink=keep, only=lambda *_: True, late=late) as watch:
        result = drive(model)
    return calls, result, watch


def awake(model, drive):
    """The same of a mode that is on all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families.Families, "may_sleep", False)
        calls, result, watch = asleep(model, drive)
    assert watch._waking.slept == 0
    return calls, result, watch


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for field in fields(one):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(mine, Tensor):
                assert torch.equal(mine, theirs), (one.module, field.name)
            else:
                assert mine == theirs, (one.module, field.name)


class Layer(nn.Module):
    """Attention of the newest token over rows that grow; `how` may depend on their number."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.into = nn.Linear(HEADS * DIM, 3 * HEADS * DIM)
        self.past = None

    def forward(self, x):
        q, k, v = self.into(x).view(1, -1, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        if self.past is not None:
            k, v = torch.cat((self.past[0], k), 2), torch.cat((self.past[1], v), 2)
        self.past = k, v
        return x + self.how(q, k, v).transpose(1, 2).reshape(x.shape)


class Text(nn.Module):
    """Embeddings and two layers."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(32, HEADS * DIM)
        self.layers = nn.ModuleList([Layer(how), Layer(how)])

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


def steps(model):
    with torch.no_grad():
        return [model(torch.tensor([[n % 32]])) for n in range(15)]


def manual(q, k, v, scale=0.5):
    return F.softmax(q @ k.mT * scale, -1) @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def spelled(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 2
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def other_scale(q, k, v):
    return manual(q, k, v, 0.25)


def biased(q, k, v):
    far = torch.arange(k.shape[2], dtype=q.dtype) * 0.1
    return F.softmax(q @ k.mT * 0.5 + far, -1) @ v


class Encoded(Text):
    """Beside its own attention it runs a fused layer of torch's, now and then."""

    def __init__(self):
        super().__init__(manual)
        self.encoder = nn.MultiheadAttention(HEADS * DIM, HEADS, batch_first=True)

    def forward(self, tokens):
        x = super().forward(tokens)
        if self.layers[0].past[0].shape[2] in (1, 11):
            with torch.no_grad():
                x = x + self.encoder(x, x, x, need_weights=False)[0]
        return x
