"""Parts of a model that were scripted: nobody can look into them, and nothing breaks."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.record.driving.trying.private import private_copy

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.inner = torch.jit.script(Scores())

    def forward(self, idx):
        return self.head(self.inner(self.embed(idx)))


def test_a_scripted_part_is_named_and_the_model_runs_as_it_does_alone(tmp_path):
    model, ids = Model().eval(), torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        plain = model(ids)
        with kvtrace.record(model, tmp_path / "a.kvt"):
            watched = model(ids)
    assert torch.equal(plain, watched)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 1
    assert "inner: scripted, can't be seen" in trace.meta.unseen


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.embed(idx)).chunk(3, -1)
        return self.head((q @ k.transpose(-1, -2)).softmax(-1) @ v)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.jit.script(Whole())

    def forward(self, idx):
        return self.inner(idx) * 2


def test_a_scripted_model_within_another_one_takes_no_hooks_and_none_are_put_on_it(tmp_path):
    model, ids = Around().eval(), torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        plain = model(ids)
        with kvtrace.record(model, tmp_path / "a.kvt"):
            assert torch.equal(plain, model(ids))
    assert "inner: scripted, can't be seen" in kvtrace.open(tmp_path / "a.kvt").meta.unseen


def test_a_private_copy_of_a_scripted_part_keeps_its_own_buffers():
    model = Model().eval()
    copy = private_copy(model)
    with torch.no_grad():
        assert torch.equal(copy(torch.tensor([[3]])), Model().eval()(torch.tensor([[3]])))
    assert model.inner.calls.item() == 0
    assert copy.embed.weight is model.embed.weight
