"""Texts packed in one row of tokens: it is said, and no pass over the row is held against them."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, check

WIDTH, HEADS, VOCAB, ROOM = 16, 2, 40, 32
PROMPTS = ([3, 9, 4, 1, 7], [3, 21, 8])


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, texts, new):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(1, 2, 0, 3)
        for text, keys, values in zip(texts, k.split(new, 1), v.split(new, 1), strict=True):
            held = text.get(self, [keys[:, :0], values[:, :0]])
            text[self] = [torch.cat([*held[:1], keys], 1), torch.cat([*held[1:], values], 1)]
        return x + self.out(self.attend(q, [text[self] for text in texts], new).flatten(1))

    def attend(self, q, held, new):
        blocks = [
            torch.ones(count, keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - count)
            for count, (keys, _) in zip(new, held, strict=True)
        ]
        keys, values = (torch.cat(rows, 1) for rows in zip(*held, strict=True))
        mask = torch.block_diag(*blocks).bool()
        y = nn.functional.scaled_dot_product_attention(q[None], keys[None], values[None], mask)
        return y[0].transpose(0, 1)


class OneByOne(Layer):
    """Every text attends in a call of its own."""

    def attend(self, q, held, new):
        made = []
        for mine, (keys, values) in zip(q.split(new, 1), held, strict=True):
            count, seq = mine.shape[1], keys.shape[1]
            mask = torch.ones(count, seq, dtype=torch.bool).tril(seq - count)
            some = nn.functional.scaled_dot_product_attention(mine, keys, values, mask)
            made.append(some.transpose(0, 1))
        return torch.cat(made)


class Engine(nn.Module):
    """A row of tokens; called with ids alone it takes them for one text."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(ROOM, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(2))

    def forward(self, ids, positions=None, texts=None, new=None):
        positions = torch.arange(len(ids)) if positions is None else positions
        x = self.tokens(ids) + self.places(positions)
        for layer in self.layers:
            x = layer(x, [{}] if texts is None else texts, [len(ids)] if new is None else new)
        return x @ self.tokens.weight.T


@torch.no_grad()
def decode(model, prompts=PROMPTS, steps=5):
    texts, fed = [{} for _ in prompts], [list(one) for one in prompts]
    ends = [0 for _ in prompts]
    for _ in range(steps):
        new = [len(one) for one in fed]
        places = [torch.arange(end, end + n) for end, n in zip(ends, new, strict=True)]
        logits = model(
            torch.tensor([token for one in fed for token in one]), torch.cat(places), texts, new
        )
        last = torch.tensor(new).cumsum(0) - 1
        ends = [end + n for end, n in zip(ends, new, strict=True)]
        fed = [[int(row.argmax())] for row in logits[last]]


def recorded(path, model, **options):
    with kvtrace.record(model, path):
        decode(model, **options)
    return kvtrace.open(path)


@pytest.mark.parametrize("layer", [Layer, OneByOne])
def test_a_row_of_several_texts_is_told_and_never_called_a_bug(layer, tmp_path):
    trace = recorded(tmp_path / "a.kvt", Engine(layer))

    report = check(trace)
    assert report.verdict != DIVERGED, report
    assert "step 1 was fed tokens of 2 texts that are packed in one row" in str(report)
    assert not any(trace.compared(step.number) for step in trace)


@pytest.mark.parametrize("layer", [Layer, OneByOne])
def test_a_row_of_one_text_is_compared(layer, tmp_path):
    trace = recorded(tmp_path / "a.kvt", Engine(layer), prompts=PROMPTS[:1])

    assert all(trace.compared(step.number) is not None for step in trace)
    assert not any("packed" in note.text for note in trace.notes)
