"""A softmax that is taken in another dtype than the rest."""

import torch
import torch.nn.functional as F
from torch import nn

import kvtrace


class Upcast(nn.Module):
    """One layer whose softmax is float32 whatever the model is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)

    def forward(self, x, past=None):
        q, k, v = self.qkv(self.embed(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        scores = q @ k.transpose(-1, -2) / 2
        hidden = torch.ones(scores.shape[-2:]).triu(1 + k.shape[2] - q.shape[2]).bool()
        weights = F.softmax(scores.masked_fill(hidden, -torch.inf).float(), -1).type_as(q)
        return self.head((weights @ v).transpose(1, 2).flatten(2)), (k, v)


def test_a_softmax_in_float32_is_attention_in_a_model_of_float64_too(tmp_path):
    model, tokens = Upcast(), torch.tensor([[3, 1, 4, 1]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", referee=True):
        _, cache = model(tokens)
        model(torch.tensor([[5]]), cache)
    meta = kvtrace.open(tmp_path / "a.kvt").meta
    assert [lane.name for lane in meta.lanes] == ["recomputed", "referee"]
    assert [site.num_heads for site in meta.sites] == [2]
