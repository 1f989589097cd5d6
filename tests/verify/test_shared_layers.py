"""Layers that write no rows and read those of another: of the wrong one once there is a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kvtrace
from kvtrace.analysis.checks import EQUAL

PROMPT = [5, 9, 30, 7, 21, 14, 2]


class Pairs(nn.Module):
    """Layers 0 and 2 write rows, 1 and 3 read those of the layer before them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(40, 32), nn.Embedding(64, 32)
        self.q, self.o = (nn.ModuleList(nn.Linear(32, 32) for _ in range(4)) for _ in range(2))
        self.kv = nn.ModuleList(nn.Linear(32, 64) for _ in range(2))
        self.attend = nn.ModuleList(Attend() for _ in range(4))
        self.head = nn.Linear(32, 40)

    def forward(self, ids: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        begin = 0 if past is None else past[0].shape[3]
        x = self.tokens(ids) + self.places(torch.arange(begin, begin + ids.shape[1]))
        held: list[Tensor] = []
        for at in range(4):
            y = F.layer_norm(x, (32,))
            if at % 2 == 0:
                new = torch.stack(split(self.kv[at // 2](y)).chunk(2, 1))
                held.append(new if past is None else torch.cat([past[at // 2], new], 3))
            k, v = held[self.source(at, begin)]
            x = x + self.o[at](
                self.attend[at](split(self.q[at](y)), k, v).transpose(1, 2).flatten(2)
            )
        return self.head(x), held

    def source(self, at: int, begin: int) -> int:
        return at // 2


class Attend(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        new, rows = q.shape[2], k.shape[2]
        mask = torch.ones(new, rows, dtype=torch.bool).tril(rows - new)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class FirstAtLast(Pairs):
    def source(self, at: int, begin: int) -> int:
        return 0 if begin and at == 3 else at // 2


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 8)).transpose(1, 2)


def test_a_layer_that_reads_rows_of_another_than_it_should_is_named() -> None:
    finding = kvtrace.check(FirstAtLast().eval(), [PROMPT], new_tokens=6).findings[0]
    assert (finding.name, finding.step) == ("WRONG-LAYER", 1)
    assert finding.where.startswith("layer 3")


def test_layers_that_share_rows_rightly_are_equal() -> None:
    assert kvtrace.check(Pairs().eval(), [PROMPT], new_tokens=6).verdict == EQUAL
