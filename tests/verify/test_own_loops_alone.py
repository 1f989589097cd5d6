"""Models that cache in their own loop alone: that is what is checked of them, as long as asked."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL

WIDTH, VOCAB = 32, 48
PROMPT = [5, 9, 30, 7, 21, 14, 2, 12, 40, 3]


class Remembering(nn.Module):
    """Keeps rows inside of a `with` that only its `generate` knows."""

    room = 64

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCAB)
        self.rows: list[dict[str, Tensor]] | None = None

    def empty(self) -> list[dict[str, Tensor]]:
        return [{} for _ in self.mixes]

    @contextlib.contextmanager
    def remembering(self):
        self.rows, self.past = self.empty(), 0
        try:
            yield
        finally:
            self.rows = None

    def forward(self, ids: Tensor) -> Tensor:
        past = 0 if self.rows is None else self.past
        x = self.tokens(ids) + self.wpe(torch.arange(past, past + ids.shape[1]))
        for n, mix in enumerate(self.mixes):
            q, k, v = mix(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            if self.rows is not None:
                k, v = (self.kept(n, *both) for both in (("k", k), ("v", v)))
            mask = torch.ones(ids.shape[1], k.shape[2], dtype=torch.bool)
            scores = q @ k.mT / 8**0.5
            scores = scores.masked_fill(~mask.tril(k.shape[2] - ids.shape[1]), -1e9)
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        if self.rows is not None:
            self.past += ids.shape[1]
        return self.head(x)

    def kept(self, layer: int, name: str, new: Tensor) -> Tensor:
        row = self.rows[layer]
        row[name] = torch.cat([row[name], new], 2)[:, :, -self.room :] if name in row else new
        return row[name]

    @torch.no_grad()
    def generate(self, ids: Tensor, count: int) -> Tensor:
        with self.remembering():
            for _ in range(count):
                new = ids if self.past == 0 else ids[:, -1:]
                ids = torch.cat([ids, self(new)[:, -1:].argmax(-1)], 1)
        return ids


class Sharing(Remembering):
    """One dictionary as many times as there are layers."""

    def empty(self):
        return [{}] * len(self.mixes)


@pytest.mark.parametrize("room", [64, 14])
def test_a_loop_that_alone_caches_is_checked_as_long_as_was_asked(room):
    model = Remembering()
    model.room = room
    report = kvtrace.check(model, PROMPT, new_tokens=8)
    if room == 64:
        assert (report.verdict, report.findings) == (EQUAL, ()), report
    else:
        first = report.findings[0]
        assert report.verdict == DIVERGED
        assert (first.name, first.step, first.layer) == ("EVICTED-EARLY", 5, 0)


def test_a_cache_that_all_layers_were_given_holds_rows_of_the_layer_before():
    report = kvtrace.check(Sharing(), PROMPT, new_tokens=4)
    found = {(one.name, one.step, one.layer) for one in report.findings}
    assert ("WRONG-LAYER", 0, 1) in found, report
    assert "STALE-CACHE" not in {name for name, _, _ in found}
