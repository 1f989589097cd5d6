"""Models that keep their cache outside of themselves: in globals, classes, default arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB, LAYERS = 32, 4, 50, 2
PROMPT = torch.tensor([[5, 3, 8, 1, 30, 22]])

KEPT = [None] * LAYERS
BUFFER = torch.zeros(2, LAYERS, 32, WIDTH)
COUNT = 0
PLACE = torch.zeros(1, dtype=torch.long)


class Slots:
    """An object of the file, with rows in it."""

    def __init__(self):
        self.rows = {}


SLOTS = Slots()


def grown(past, k, v):
    return (k, v) if past is None else (torch.cat((past[0], k)), torch.cat((past[1], v)))


def in_list(layer, k, v, start):
    KEPT[layer] = grown(KEPT[layer], k, v)
    return KEPT[layer]


def in_buffer(layer, k, v, start):
    end = start + len(k)
    BUFFER[0, layer, start:end], BUFFER[1, layer, start:end] = k, v
    return BUFFER[0, layer, :end], BUFFER[1, layer, :end]


def in_object(layer, k, v, start):
    SLOTS.rows[layer] = grown(SLOTS.rows.get(layer), k, v)
    return SLOTS.rows[layer]


def in_default(layer, k, v, start, store={}):  # noqa: B006
    store[layer] = grown(store.get(layer), k, v)
    return store[layer]


class Attention(nn.Module):
    rows = {}  # noqa: RUF012

    def __init__(self, layer, keep):
        super().__init__()
        self.layer, self.keep = layer, keep
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x, start):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.keep == "class":
            k, v = Attention.rows[self.layer] = grown(Attention.rows.get(self.layer), k, v)
        else:
            k, v = KEEPS[self.keep](self.layer, k, v, start)
        heads = [one.view(-1, HEADS, WIDTH // HEADS).transpose(0, 1) for one in (q, k, v)]
        scores = heads[0] @ heads[1].transpose(1, 2) / math.sqrt(WIDTH // HEADS)
        hidden = torch.ones(len(q), len(k)).triu(1 + len(k) - len(q)).bool()
        found = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ heads[2]
        return x + found.transpose(0, 1).reshape(x.shape)


KEEPS = {"list": in_list, "buffer": in_buffer, "object": in_object, "default": in_default}


class Model(nn.Module):
    def __init__(self, keep, off=0):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList(Attention(layer, keep) for layer in range(LAYERS))
        self.off = off

    def forward(self, ids):
        global COUNT
        start, rows = COUNT, ids.shape[1]
        COUNT += rows
        places = PLACE + torch.arange(rows) + (self.off if start else 0)
        PLACE.add_(rows)
        x = (self.wte(ids) + self.wpe(places))[0]
        for layer in self.layers:
            x = layer(x, start)
        return (x @ self.wte.weight.T)[None]


def forget():
    global COUNT
    COUNT = 0
    PLACE.zero_()
    KEPT[:] = [None] * LAYERS
    for rows in (SLOTS.rows, Attention.rows, in_default.__defaults__[0]):
        rows.clear()


def decoded(model, steps):
    ids, out = PROMPT, []
    with torch.no_grad():
        for _ in range(steps):
            out.append(model(ids))
            ids = out[-1][:, -1:].argmax(-1)
    return torch.cat(out, 1)


def kept():
    """How many rows there are, wherever they are."""
    held = (*(SLOTS.rows.values()), *Attention.rows.values(), *in_default.__defaults__[0].values())
    held = [*held, *(one for one in KEPT if one is not None)]
    return COUNT, int(PLACE), [len(keys) for keys, _ in held], BUFFER.clone()


def apart(path):
    trace = kvtrace.open(path)
    return [
        float(np.nanmax(one.max_abs / one.reference_max))
        for one in map(trace.compared, trace.numbers)
    ]


@pytest.mark.parametrize("recompute", ["once", "each"])
@pytest.mark.parametrize("keep", [*KEEPS, "class"])
def test_a_lane_finds_what_was_there_first_and_leaves_what_is_there_now(keep, recompute, tmp_path):
    model = Model(keep).eval()
    forget()
    expected, left = decoded(model, 6), kept()
    forget()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=recompute):
        assert torch.equal(decoded(model, 6), expected)
    now = kept()
    assert now[:3] == left[:3]
    assert torch.equal(now[3], left[3])
    assert max(apart(tmp_path / "a.kvt")) < 1e-5


def test_rows_in_a_buffer_of_the_file_are_compared_with_those_of_the_lane(tmp_path):
    model = Model("buffer", off=1).eval()
    forget()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        decoded(model, 4)
    trace = kvtrace.open(tmp_path / "a.kvt")
    first, *others = [trace.compared(number).relative for number in trace.numbers]
    assert np.nanmax(first) < 1e-5
    assert all(np.nanmin(one[:, 1:3]) > 1e-2 for one in others)  # keys and values
