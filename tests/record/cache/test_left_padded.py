"""Models of somebody's own that are told of padding at the left by an argument of any name."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import check
from kvtrace.files import open_trace

PADDED, PROMPT, TOTAL = 3, 7, 11


class Decoder(nn.Module):
    """One layer with learned positions; `late` counts padding as positions in decode steps."""

    def __init__(self, late=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(40, 32), nn.Embedding(32, 32)
        self.qkv, self.head = nn.Linear(32, 96), nn.Linear(32, 40)
        self.late = late

    def forward(self, idx, pad_mask, cache, pos=None):
        seq, start = pad_mask.shape[1], pad_mask.shape[1] - idx.shape[1]
        if pos is None:
            pos = (pad_mask.long().cumsum(1) - 1).clamp(min=0)[:, start:]
        if self.late and start:
            pos = torch.arange(start, seq)[None]
        x = self.embed(idx) + self.places(pos)
        q, k, v = self.qkv(x).chunk(3, -1)
        if "k" in cache:
            k, v = torch.cat((cache["k"], k), 1), torch.cat((cache["v"], v), 1)
        cache.update(k=k, v=v)
        seen = torch.ones(seq, seq, dtype=torch.bool).tril()[start:] & (pad_mask[:, None] > 0)
        seen = seen | torch.eye(seq, dtype=torch.bool)[start:]
        scores = (q @ k.transpose(1, 2) / 32**0.5).masked_fill(~seen, -1e9)
        return self.head(x + scores.softmax(-1) @ v)


def report(model, path, dtype=torch.long, *, told=False):
    tokens = torch.randperm(40, generator=torch.Generator().manual_seed(0))[: 2 * TOTAL]
    tokens, mask = tokens.view(2, TOTAL), torch.ones(2, TOTAL, dtype=dtype)
    mask[0, :PADDED] = 0
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    start, cache = 0, {}
    with kvtrace.record(model, path, keep_rows=True), torch.no_grad():
        for end in range(PROMPT, TOTAL + 1):
            more = {"pos": places[:, start:end]} if told else {}
            model(tokens[:, start:end], mask[:, :end], cache, **more)
            start = end
    return check(open_trace(path))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize("told", [False, True])
def test_a_healthy_model_is_equal(tmp_path, dtype, told):
    found = report(Decoder().eval(), tmp_path / "a.kvt", dtype, told=told)
    assert found.ok, str(found)


def test_positions_that_count_padding_are_found_in_the_padded_row_alone(tmp_path):
    found = report(Decoder(late=True).eval(), tmp_path / "a.kvt").findings[0]
    assert (found.name, found.step, found.sequences) == ("POSITION-EMBEDDING", 1, (0,))
