"""Models that are given the whole text at each step, and compute its newest row alone."""

import torch
from torch import nn

import kvtrace


class Newest(nn.Module):
    """Keeps keys and values inside; masks are tables that the caller makes, of whole numbers."""

    def __init__(self, heads=4, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, heads * width)
        self.qkv = nn.Linear(heads * width, 3 * heads * width)
        self.head = nn.Linear(heads * width, 40)
        self.shape = (heads, width)
        self.register_buffer("keys", torch.zeros(1, heads, 32, width))
        self.register_buffer("values", torch.zeros(1, heads, 32, width))
        self.length = 0

    def forward(self, x, mask):
        rows = self.qkv(self.table(x)[:, -1:]).unflatten(-1, (3, *self.shape))
        q, k, v = rows.permute(2, 0, 3, 1, 4)
        self.keys[:, :, self.length : self.length + 1] = k
        self.values[:, :, self.length : self.length + 1] = v
        self.length += 1
        k, v = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        scores = torch.matmul(q, k.mT) / self.shape[1] ** 0.5
        seen = mask[:, -1:, : self.length].unsqueeze(1)
        out = torch.matmul(scores.masked_fill(seen == 0, -1e9).softmax(-1), v)
        return self.head(out.transpose(1, 2).flatten(2))


def run(model, steps):
    """A text that grows by a token of its own each time."""
    with torch.no_grad():
        for end in range(1, steps + 1):
            text = torch.arange(end)[None]
            model(text, torch.ones(1, end, end, dtype=torch.long).tril())


def test_a_text_as_long_as_there_are_heads_is_seen_where_others_were(tmp_path):
    model = Newest(heads=4)
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        run(model, 7)
    assert [(one.steps, one.texts, one.unseen) for one in recording.report.traces] == [(7, 1, ())]
    trace = kvtrace.open(tmp_path / "a.kvt")
    for number in trace.numbers:
        kept = trace.cache(number, 0)
        assert kept.keys.shape == (4, number + 1, 16)
        assert (kept.keys == model.keys[0, :, : number + 1].numpy()).all()


def test_a_table_of_whole_numbers_that_masks_is_nothing_that_tokens_are_called(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):
        run(Newest(heads=3), 6)
    notes = [note.text for note in kvtrace.open(tmp_path / "a.kvt").notes]
    why = "could not compute the recomputed lane: with the tokens alone: `mask` can't be left out"
    assert [text.startswith(why) for text in notes] == [True]
