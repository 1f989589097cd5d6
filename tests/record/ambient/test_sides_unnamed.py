"""Models of two sides whose modules have names that tell neither: by what their forward takes."""

import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import EQUAL
from kvtrace.analysis.checks.verdict import check

SOURCES = ([5, 9, 3, 7, 2, 4], [8, 1, 13, 17, 6])


def attend(q, k, v, hides):
    scores = q @ k.mT * 8**-0.5
    if hides:
        new, seq = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(new, seq).triu(seq - new + 1).bool(), -1e9)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def split(rows, parts):
    return rows.unflatten(-1, (parts, 2, 8)).permute(2, 0, 3, 1, 4)


class First(nn.Module):
    """Sees all of its text."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        return x + attend(*split(self.qkv(x), 3), hides=False)


class Second(nn.Module):
    """Attends to its own text, then to the other, all in its forward."""

    def __init__(self):
        super().__init__()
        self.qkv, self.q, self.kv = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, x, memory, past):
        q, k, v = split(self.qkv(x), 3)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        x = x + attend(q, k, v, hides=True)
        return x + attend(*split(self.q(x), 1), *split(self.kv(memory), 2), hides=False), (k, v)


class Translator(nn.Module):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(64, 16)
        self.ones, self.others = (
            nn.ModuleList(kind() for _ in range(2)) for kind in (First, Second)
        )
        self.head = nn.Linear(16, 20)

    def forward(self, src, tgt):
        return self.write(tgt, self.encode(src))[0]

    def encode(self, src):
        x = self.embed(src) + self.places.weight[: src.shape[1]]
        for layer in self.ones:
            x = layer(x)
        return x

    def write(self, ids, memory, past=(None, None)):
        at = 0 if past[0] is None else past[0][0].shape[2]
        x, made = self.embed(ids) + self.places.weight[at : at + ids.shape[1]], []
        for layer, rows in zip(self.others, past, strict=True):
            x, kept = layer(x, memory, rows)
            made.append(kept)
        return self.head(x), made


class Helped(Translator):
    """Encodes by itself, with no module that attends."""

    def encode(self, src):
        x = self.embed(src) + self.places.weight[: src.shape[1]]
        return x + attend(*split(self.ones[0].qkv(x), 3), hides=False)


class Alone(Translator):
    """Its forward takes one text, which it goes on with beside a view of it all."""

    def forward(self, ids):
        return self.write(ids, self.encode(ids))[0]


@torch.no_grad()
def translated(model, path):
    with kvtrace.record(path):
        for source in SOURCES:
            memory, past, token = model.encode(torch.tensor([source])), (None, None), 1
            for _ in range(7):
                logits, past = model.write(torch.tensor([[token]]), memory, past)
                token = int(logits[0, -1].argmax())
    return kvtrace.open(path)


def kinds(trace):
    return [(site.module, site.call, site.kind) for site in trace.meta.sites]


def test_the_other_text_is_told_by_a_forward_that_takes_both(tmp_path):
    assert kinds(translated(Translator(), tmp_path / "a.kvt")) == [
        *(("ones.0", 0, "self"), ("ones.1", 0, "self")),
        *(("others.0", 0, "self"), ("others.0", 1, "cross")),
        *(("others.1", 0, "self"), ("others.1", 1, "cross")),
    ]


def test_steps_are_held_against_the_forward_where_a_function_encodes(tmp_path):
    trace = translated(Helped(), tmp_path / "a.kvt")
    assert [kind for *_, kind in kinds(trace)] == ["encoder", "self", "cross", "self", "cross"]
    assert check(trace).verdict == EQUAL


def test_a_model_whose_forward_takes_one_text_has_one_side(tmp_path):
    trace = translated(Alone(), tmp_path / "a.kvt")
    assert {kind for *_, kind in kinds(trace)} == {"self"}
