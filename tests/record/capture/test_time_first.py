"""Models of one's own that take ids as [tokens, sequences]."""

import pytest
import torch
from torch import nn

import kvtrace

VOCAB, WIDTH = 40, 16


class TimeFirst(nn.Module):
    """torch's own layers as they are by default: the first dimension is time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(30, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, src):
        hidden = torch.full((len(src), len(src)), -torch.inf).triu(1)
        x = self.wte(src) + self.wpe(torch.arange(len(src)))[:, None]
        return self.head(self.layer(x, src_mask=hidden))


@pytest.mark.parametrize("sequences", [1, 2])
def test_tokens_that_come_down_a_column_are_one_sequence_that_goes_on(tmp_path, sequences):
    model, ids = TimeFirst().eval(), torch.arange(3, 3 + 7 * sequences).view(sequences, 7)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"), torch.no_grad():
        for count in (4, 5, 6):
            model(ids[:, :count].t())
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.phase for step in trace] == ["prefill", "decode", "decode"]
    assert [step.parent for step in trace] == [None, 0, 1]
    assert trace.step(2).tokens == tuple(tuple(row) for row in ids[:, :6].tolist())
    assert all(float(trace.compared(step.number).relative.max()) < 1e-5 for step in trace)
