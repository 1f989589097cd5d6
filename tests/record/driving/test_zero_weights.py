"""Models whose weights let nothing of earlier tokens reach the logits: their cache is found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kvtrace.record.driving import choose_drive
from kvtrace.record.driving.wish import Wish


class Untrained(nn.Module):
    """Begins with an output projection of zeros, as many do: attention adds nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(20, 8), nn.Linear(8, 24)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        nn.init.zeros_(self.out.weight)

    def forward(self, ids, past=None):
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        if past is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v, mask))), (k, v)


class AtOnce(Untrained):
    """Has all weights at zero, and so no logit but zero."""

    def __init__(self) -> None:
        super().__init__()
        for one in self.parameters():
            nn.init.zeros_(one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [Untrained, AtOnce])
def test_a_cache_behind_weights_of_zero_is_found(make, dtype):
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    before = [one.clone() for one in model.parameters()]
    found = choose_drive(model, Wish([1, 2, 3, 4, 5], vocabulary=20))
    assert found.said == (
        "called as model(ids [1, new], past=cache): the prompt at once, then single tokens; "
        "the cache begins as None and comes back as result[1]",
    )
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_whose_rows_see_nothing_of_each_other_has_no_cache_with_other_weights_either():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20)).eval()
    found = choose_drive(model, Wish([1, 2, 3, 4, 5], vocabulary=20))
    assert "no cache was found" in found.said[0]
