"""Rows that go to other memory while a text goes on: the trace says how much it is, and whose."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB, LAYERS = 16, 2, 40, 2
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


class Buffer:
    """One tensor for all layers; `more` rows are added where there is no room left."""

    def __init__(self, rows, more=0, batch=1):
        self.batch, self.more, self.pos = batch, more, 0
        self.kept = self.empty(rows)

    def empty(self, rows):
        return torch.zeros(LAYERS, 2, self.batch, HEADS, rows, WIDTH // HEADS)

    def put(self, layer, k, v):
        end = self.pos + k.shape[2]
        if end > self.kept.shape[4]:
            self.kept = torch.cat((self.kept, self.empty(end + self.more)), 4)
        for half, rows in enumerate((k, v)):
            self.kept[layer, half, :, :, self.pos : end] = rows
        held = self.kept[layer, :, :, :, :end]
        self.pos = end if layer == LAYERS - 1 else self.pos
        return held[0], held[1]


class Attention(nn.Module):
    """Sees no more than its last rows where a token is alone."""

    def __init__(self, layer, window):
        super().__init__()
        self.window = window
        self.layer, self.qkv = layer, nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x, cache):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.put(self.layer, k, v)
            if x.shape[1] == 1:
                k, v = k[:, :, -self.window :], v[:, :, -self.window :]
        hidden = torch.full((q.shape[2], k.shape[2]), -torch.inf).triu(k.shape[2] - q.shape[2] + 1)
        return ((q @ k.mT / 3 + hidden).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, window=99):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(60, WIDTH)
        self.layers = nn.ModuleList(Attention(n, window) for n in range(LAYERS))

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.pos
        x = self.tokens(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        for layer in self.layers:
            x = x + layer(x, cache)
        return x @ self.tokens.weight.T


def prefill_alone(model, ids):
    """A cache that holds the prompt alone, and another one that goes on with its rows."""
    first = Buffer(ids.shape[1])
    token = model(ids, first)[:, -1:].argmax(-1)
    cache = Buffer(12)
    cache.kept[:, :, :, :, : first.pos], cache.pos = first.kept, first.pos
    return token, cache, [first.kept.nbytes]


def grown(model, ids):
    """One that is full after two more tokens, and then made longer."""
    cache = Buffer(7, more=20)
    return model(ids, cache)[:, -1:].argmax(-1), cache, [cache.kept.nbytes]


def once_without(model, ids):
    """The same text without a cache before."""
    longer = ids
    for _ in range(3):
        longer = torch.cat((longer, model(longer)[:, -1:].argmax(-1)), 1)
    return prefill_alone(model, ids)


def recorded(model, path, begin, steps):
    """The trace of a text, its cache at the end, and how large that was after every step."""
    with kvtrace.record(model, path, recompute="off"), torch.no_grad():
        token, cache, live = begin(model, PROMPT)
        for _ in range(steps):
            token = model(token, cache)[:, -1:].argmax(-1)
            live.append(cache.kept.nbytes)
    return kvtrace.open(path), cache, live


@pytest.mark.parametrize("begin", [prefill_alone, grown, once_without])
def test_bytes_are_those_of_the_memory_that_holds_the_rows_now(begin, tmp_path):
    trace, cache, live = recorded(Model().eval(), tmp_path / "a.kvt", begin, 6)
    told = [step.cost.cache_bytes for step in trace]
    assert told == [0] * (len(told) - len(live)) + live
    layer = trace.meta.cache_layers[0]
    assert (layer.kind, layer.capacity) == ("static", cache.kept.shape[4])
    assert str(list(cache.kept.shape)) in layer.where


def test_a_layer_that_sees_some_rows_of_a_buffer_is_held_by_the_whole_of_it(tmp_path):
    trace, _, live = recorded(Model(window=4).eval(), tmp_path / "a.kvt", prefill_alone, 4)
    assert [step.cost.cache_bytes for step in trace] == live
    assert (trace.meta.cache_layers[0].window, trace.meta.cache_layers[0].capacity) == (4, 12)


@pytest.mark.parametrize(
    ("rows", "kind"), [([0, 0, 0], "repeat"), ([0, 0, 0, 1, 1, 1], "repeat"), ([1, 0], "reorder")]
)
def test_a_prompt_that_is_gone_on_with_several_times_is_repeated_and_no_beams(rows, kind, tmp_path):
    model = Model().eval()
    prompts = torch.stack((PROMPT[0], PROMPT[0] + 7))[: max(rows) + 1]
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"), torch.no_grad():
        first = Buffer(5, batch=len(prompts))
        model(prompts, first)
        cache = Buffer(12, batch=len(rows))
        cache.kept[:, :, :, :, :5], cache.pos = first.kept[:, :, rows], 5
        for token in (8, 9):
            model(torch.arange(len(rows))[:, None] + token, cache)
    step = kvtrace.open(tmp_path / "a.kvt").step(1)
    assert [(one.kind, list(one.order)) for one in step.events] == [(kind, rows)]


def test_a_text_that_is_over_leaves_its_batch(tmp_path):
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"), torch.no_grad():
        cache = Buffer(12, batch=3)
        model(torch.cat((PROMPT, PROMPT + 7, PROMPT + 9)), cache)
        cache.kept, cache.batch = cache.kept[:, :, [0, 2]], 2
        for token in (8, 9):
            model(torch.tensor([[token], [token + 1]]), cache)
    step = kvtrace.open(tmp_path / "a.kvt").step(1)
    assert [(one.kind, one.order) for one in step.events] == [("select", (0, 2))]
