"""One module sees the prompt, another one beside it the cache in the steps after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.randint(0, 20, (1, 6), generator=torch.Generator().manual_seed(1))
ROOM = 16


class Attend(nn.Module):
    """Rows are [batch, seq, heads, dim]; `last` is the place of the newest one."""

    def forward(self, q, k, v, last):
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * 4**-0.5
        places = torch.arange(k.shape[1]) - torch.arange(last + 1 - q.shape[1], last + 1)[:, None]
        weights = scores.masked_fill(places > 0, -1e9).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", weights, v)


class Mixer(nn.Module):
    def __init__(self, names, whole):
        super().__init__()
        self.rows, self.out, self.whole, self.names = (
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            whole,
            names,
        )
        for name in names:
            setattr(self, name, Attend())

    def forward(self, x, kept):
        q, k, v = self.rows(x).unflatten(-1, (3, 4, 4)).unbind(2)
        first, end = kept["rows"], kept["rows"] + x.shape[1]
        buffer = kept.setdefault(id(self), torch.zeros(1, ROOM, 2, 4, 4))
        buffer[:, first:end, 0], buffer[:, first:end, 1] = k, v
        if first:
            k, v = buffer[:, : ROOM if self.whole else end].unbind(2)
        attend = getattr(self, self.names[first > 0])
        return self.out(attend(q, k, v, end - 1).flatten(2))


class Model(nn.Module):
    def __init__(self, names, whole):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.ModuleList(Mixer(names, whole) for _ in range(2))

    def forward(self, ids, kept):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, kept)
        kept["rows"] += ids.shape[1]
        return self.head(x)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "names", [("inner_attn", "inner_cross_attn"), ("at_once", "by_one")], ids=lambda names: names[1]
)
def test_a_module_that_goes_on_for_the_one_beside_it_attends_at_its_place(tmp_path, names, whole):
    model, kept, ids = Model(names, whole).eval(), {"rows": 0}, IDS
    with torch.no_grad(), kvtrace.record(tmp_path / "run.kvt"):
        for _ in range(4):
            ids = model(ids, kept)[:, -1:].argmax(-1)
    trace = kvtrace.open(tmp_path / "run.kvt")
    assert [(site.module, site.kind) for site in trace.meta.sites] == [
        (f"layers.{number}.{names[0]}", "self") for number in (0, 1)
    ]
    assert [step.positions[0] for step in trace] == [tuple(range(6)), (6,), (7,), (8,)]
    rows = kept[id(model.layers[1])][0, :9, 0].transpose(0, 1)
    assert torch.equal(torch.from_numpy(trace.cache(3, layer=1).keys.copy()), rows)
    assert check(trace).verdict == "equal within rounding"


class Looking(nn.Module):
    """Attends to its own text, and to a picture where there is one."""

    def __init__(self):
        super().__init__()
        self.rows, self.seen = nn.Linear(16, 48), nn.Linear(16, 32)
        self.attn, self.cross_attn = Attend(), Attend()

    def forward(self, x, picture):
        q, k, v = self.rows(x).unflatten(-1, (3, 4, 4)).unbind(2)
        x = x + self.attn(q, k, v, x.shape[1] - 1).flatten(2)
        if picture is None:
            return x
        k, v = self.seen(picture).unflatten(-1, (2, 4, 4)).unbind(2)
        return x + self.cross_attn(q, k, v, k.shape[1] + q.shape[1]).flatten(2)


class Seer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.ModuleList(Looking() for _ in range(2))

    def forward(self, ids, picture=None):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, picture)
        return self.head(x)


def test_a_module_that_attends_to_another_text_beside_its_own_keeps_its_place(tmp_path):
    model = Seer().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "run.kvt", recompute="off"):
        model(IDS)
        model(IDS, torch.randn(1, 12, 16))
    sites = kvtrace.open(tmp_path / "run.kvt").meta.sites
    assert {site.module.rpartition(".")[2]: site.kind for site in sites} == {
        "attn": "self",
        "cross_attn": "cross",
    }
