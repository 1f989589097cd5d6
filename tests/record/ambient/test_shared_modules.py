"""Models that share modules: what one of them attended with is not missed in another."""

import torch
from torch import nn

import kvtrace


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)


class Reads(nn.Module):
    """Attends with what it was given."""

    def __init__(self, attention):
        super().__init__()
        self.embed, self.attention, self.out = nn.Embedding(20, 16), attention, nn.Linear(16, 20)

    def forward(self, ids):
        return self.out(self.attention(self.embed(ids)))


class Around(nn.Module):
    """Holds what another model attends with, is given ids itself, and hands them on."""

    def __init__(self):
        super().__init__()
        self.attention = SelfAttention()
        self.table, self.mix = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.inner = [Reads(self.attention)]

    def forward(self, ids):
        self.mix(self.table(ids))
        return ids

    def speak(self, ids):
        return self.inner[0](self(ids))


def test_a_module_that_attended_for_one_model_is_not_missed_in_another(tmp_path):
    model = Around().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as run:
        model.speak(torch.tensor([[5, 9, 3, 7]]))
    assert [one.model for one in run.report.traces] == ["Reads"]
    assert not [one for one in run.report.said if "attention (" in one]
