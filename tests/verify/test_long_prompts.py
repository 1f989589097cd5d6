"""Streams whose cache lets go of rows before a prompt that is longer has looked at them."""

import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import EQUAL

FIRST, LAST = 3, 8

PROMPT = torch.randint(3, 45, (20,), generator=torch.Generator().manual_seed(2)).tolist()


def cut(rows: Tensor) -> Tensor:
    """The first and the last of some rows, of which dimension -2 counts."""
    if rows.shape[-2] <= FIRST + LAST:
        return rows
    return torch.cat([rows[..., :FIRST, :], rows[..., -LAST:, :]], -2)


class Stream(nn.Module):
    def __init__(self, layers=2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.wpe = nn.Embedding(48, 64), nn.Embedding(64, 64)
        self.mixes = nn.ModuleList(nn.Linear(64, 192) for _ in range(layers))
        self.head = nn.Linear(64, 48)

    def new_cache(self):
        return [[] for _ in self.mixes]

    def forward(self, ids: Tensor, cache: list[list[Tensor]] | None = None) -> Tensor:
        new = ids.shape[1]
        past = int(cache[0][2][0, 0, -1, 0]) + 1 if cache and cache[0] else 0
        places = torch.arange(past, past + new)
        x = self.tokens(ids) + self.wpe(places)
        for n, mix in enumerate(self.mixes):
            q, *rows = mix(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            rows.append(places[None, None, :, None])
            if cache is not None:
                if cache[n]:
                    rows = [torch.cat(both, 2) for both in zip(cache[n], rows, strict=True)]
                cache[n] = rows = [cut(one) for one in rows]
            k, v, at = rows
            scores = q @ k.mT / 4
            scores = scores.masked_fill(at[0, 0, :, 0] > places[:, None], -1e9)
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(x)


def test_rows_that_were_let_go_before_the_prompt_looked_were_evicted():
    report = kvtrace.check(Stream(), PROMPT, new_tokens=4, ways=())
    found = report.findings[0]
    assert (found.name, found.step, found.layer, found.tensor) == ("EVICTED-EARLY", 0, 0, "k")
    assert "does not see places 3 to 11" in found.evidence
    assert "kept 11 of 20 rows" in found.evidence


def test_a_text_that_fits_loses_nothing():
    report = kvtrace.check(Stream(), PROMPT[:6], new_tokens=4, ways=())
    assert (report.verdict, report.findings) == (EQUAL, ())
