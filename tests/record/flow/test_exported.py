"""Exported models: their code calls operators, and takes its arguments as it was exported with."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.qkv, self.out = nn.Embedding(40, 32), nn.Linear(32, 96), nn.Linear(32, 40)

    def forward(self, idx, keys, values):
        q, k, v = self.qkv(self.emb(idx)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        new, seq = q.shape[2], k.shape[2]
        seen = torch.ones(new, seq, dtype=torch.bool).tril(seq - new)
        scores = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~seen, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), k, v


def generated(model):
    keys, values = torch.zeros(2, 1, 4, 0, 8)
    ids, found = torch.tensor([[3, 1, 4, 1, 5]]), []
    for _ in range(4):
        logits, keys, values = model(ids, keys, values)
        found.append(logits)
        ids = logits[:, -1:].argmax(-1)
    return torch.cat(found, 1)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    given = torch.tensor([[1, 2, 3]]), torch.zeros(1, 4, 3, 8), torch.ones(1, 4, 3, 8)
    auto = torch.export.Dim.AUTO
    shapes = {1: auto}, {2: auto}, {2: auto}
    return torch.export.export(Cached().eval(), given, dynamic_shapes=shapes)


@pytest.mark.parametrize("core", [False, True], ids=["as exported", "decomposed"])
def test_attention_of_an_exported_model_is_seen_and_compared(exported, core, tmp_path):
    model = (exported.run_decompositions() if core else exported).module()
    with torch.no_grad():
        plain = generated(model)
        with kvtrace.record(tmp_path / "a.kvt"):
            watched = generated(model)
        assert torch.equal(plain, watched)
        assert torch.equal(plain, generated(model))
    trace = kvtrace.open(tmp_path / "a.kvt")
    (site,) = trace.meta.sites
    assert (len(trace), site.num_heads, site.source) == (4, 4, "cache")
    assert site.scale == pytest.approx(8**-0.5)
    assert check(trace).verdict == "equal within rounding"
