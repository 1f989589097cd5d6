"""Rings that are full, and whose pointer stays at their last slot from then on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import EQUAL

WINDOW = 6


class Ring(nn.Module):
    """Sees the last six tokens, rotated; every slot is read as soon as it was written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(21)
        self.embed, self.qkv, self.out = nn.Embedding(50, 24), nn.Linear(24, 72), nn.Linear(24, 50)
        self.rows, self.place = torch.zeros(2, 1, 3, WINDOW, 8), 0

    def turned(self, x: Tensor, places: Tensor) -> Tensor:
        angles = places[:, None] * 1e4 ** (-torch.arange(0, 8, 2) / 8)
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, ids: Tensor) -> Tensor:
        new = ids.shape[1]
        places = torch.arange(self.place, self.place + new)
        x = self.embed(ids)
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        q, k = self.turned(q, places), self.turned(k, places)
        for at, place in enumerate(places.tolist()):
            self.rows[:, :, :, self.slot(place)] = torch.stack((k, v))[:, :, :, at]
        if new > 1:
            far = places[:, None] - places[None]
            shown = (far >= 0) & (far < WINDOW)
        else:
            (k, v), shown = self.rows, (torch.arange(WINDOW) <= self.place)[None]
        self.place += new
        scores = (q @ k.mT / 8**0.5).masked_fill(~shown, -1e9)
        return self.out(x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def slot(self, place: int) -> int:
        return place % WINDOW


class Standing(Ring):
    def slot(self, place: int) -> int:
        return min(place, WINDOW - 1)


@torch.no_grad()
def written(model: Ring) -> None:
    logits = model(torch.tensor([[3, 9, 4, 7]]))
    for _ in range(9):
        logits = model(logits[:, -1:].argmax(-1))


def test_a_pointer_that_stays_at_the_end_writes_over_the_row_before() -> None:
    model = Standing().eval()
    (found,) = kvtrace.check(model, run=lambda: written(model)).findings
    assert (found.name, found.step, found.layer) == ("ROW-OVERWRITTEN", 3, 0)
    assert "position 6, and its row stands in slot 5, over that of position 5" in found.evidence


def test_a_pointer_that_begins_anew_is_right() -> None:
    model = Ring().eval()
    assert kvtrace.check(model, run=lambda: written(model)).verdict == EQUAL
