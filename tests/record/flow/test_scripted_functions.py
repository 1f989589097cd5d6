"""Functions that torch.jit scripted, between scores and weights, as in older models of the hub."""

import warnings

import pytest
import torch
from torch import nn

import kvtrace
from builders.recorded import assert_attention_explains_itself


def scripted(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@scripted
def softmax_in_one(x: torch.Tensor, mask: torch.Tensor, scale: float):
    """Scaling, mask and softmax, as the code of older StarCoders has them."""
    return torch.softmax(torch.where(mask, x * scale, torch.full_like(x, -1e9)), dim=-1)


@scripted
def capped(x: torch.Tensor, cap: float):
    return (x / cap).tanh() * cap


class Scripted(nn.Module):
    """One layer with a tuple cache; what becomes of its scores is scripted."""

    def __init__(self, *, cap):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.qkv, self.cap = nn.Linear(16, 48), cap

    def forward(self, ids, past=None):
        q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        mask = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]).bool()
        scores = q @ k.transpose(-1, -2)
        if self.cap:
            weights = capped(scores * 0.5, 3.0).masked_fill(~mask, -1e9).softmax(-1)
        else:
            weights = softmax_in_one(scores, mask, 0.5)
        return self.head((weights @ v).transpose(1, 2).flatten(2)), (k, v)


def run(model):
    now, past, logits = torch.tensor([[3, 1, 4, 1, 5]]), None, []
    for _ in range(6):  # the first two calls of a scripted function are not like the others
        out, past = model(now, past)
        now = out[:, -1:].argmax(-1)
        logits.append(out)
    return logits


@pytest.mark.parametrize("cap", [True, False])
def test_every_step_is_seen_through_a_scripted_function_and_keeps_its_bits(cap, tmp_path):
    model = Scripted(cap=cap)
    with torch.no_grad():
        expected = run(model)
        with kvtrace.record(model, tmp_path / "a.kvt"):
            found = run(model)
        again = run(model)
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, again, expected))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [[group.sites for group in step.sites] for step in trace] == [[(0,)]] * 6
    assert trace.site(0).softcap == pytest.approx(3.0 if cap else None)
    assert_attention_explains_itself(trace)
    assert not any((trace.compared(step.number).beyond > 0).any() for step in trace)


def test_scripted_functions_are_what_they_were_afterwards(tmp_path):
    before = torch.jit.ScriptFunction.__call__
    with torch.no_grad(), kvtrace.record(Scripted(cap=True), tmp_path / "a.kvt") as _:
        pass
    assert torch.jit.ScriptFunction.__call__ is before


def test_attention_that_is_scripted_as_a_whole_is_seen_at_every_step(tmp_path):
    @scripted
    def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
        return torch.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.5, dim=-1).matmul(v)

    class Whole(Scripted):
        def forward(self, ids, past=None):
            q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            if past is not None:
                k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
            return self.head(whole(q, k, v).transpose(1, 2).flatten(2)), (k, v)

    model = Whole(cap=False)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        for _ in range(2):  # long enough for what sleeps
            run(model)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [[group.sites for group in step.sites] for step in trace] == [[(0,)]] * 12
    assert not trace.meta.unseen
