"""A model whose methods are called, and whose parts a function beside it calls, is one model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import kvtrace


class Both(nn.Module):
    """A cache inside; no forward that is ever called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)
        self.kept = None

    def generate_one(self, ids):
        return self.go_on(self.embed(ids))

    def go_on(self, x):
        q, k, v = self.mix(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if self.kept is not None:
            k, v = torch.cat([self.kept[0], k], 2), torch.cat([self.kept[1], v], 2)
        self.kept = k, v
        causal = q.shape[2] > 1
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
        return self.head(x)[:, -1].argmax(-1)


def next_token(model, token):
    """A function that looks the token up itself."""
    return model.go_on(model.embed(token[:, None]))


def test_steps_of_both_are_steps_of_the_model(tmp_path):
    torch.manual_seed(0)
    model = Both().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        token = model.generate_one(torch.tensor([[1, 2, 3, 4]]))
        for _ in range(3):
            token = next_token(model, token)
    assert [one.model for one in recording.report.traces] == ["Both"]
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.cache_step(n, 0).length_after for n in range(4)] == [4, 5, 6, 7]


class Inner(Both):
    """A model that is called."""

    def forward(self, ids):
        return self.generate_one(ids)


class Around(nn.Module):
    """Looks a condition up itself, and lets a model inside of it write."""

    def __init__(self) -> None:
        super().__init__()
        self.condition, self.writer = nn.Embedding(20, 16), Inner()

    def write(self, ids, steps):
        self.condition(ids)
        token = self.writer(ids)
        for _ in range(steps):
            token = self.writer(token[:, None])


def test_steps_of_a_model_inside_are_not_those_of_what_stands_around_it(tmp_path):
    torch.manual_seed(0)
    model = Around().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        model.write(torch.tensor([[1, 2, 3, 4]]), 3)
    assert [(one.model, one.steps) for one in recording.report.traces] == [("Inner", 4)]


class Attending(nn.Module):
    """A layer that is handed its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)

    def forward(self, x, kept):
        q, k, v = self.mix(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if kept["k"] is not None:
            k, v = torch.cat([kept["k"], k], 2), torch.cat([kept["v"], v], 2)
        kept["k"], kept["v"] = k, v
        x = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return x.transpose(1, 2).flatten(2)


class Speaking(nn.Module):
    """A method that keeps the cache in a variable, and does not call itself `self`."""

    def __init__(me) -> None:  # noqa: N805 - as some people write it
        super().__init__()
        me.embed, me.layer, me.head = nn.Embedding(20, 16), Attending(), nn.Linear(16, 20)

    def infer(me, ids, steps):  # noqa: N805 - as some people write it
        cache = {"k": None, "v": None}
        for step in range(steps):
            last = ids if step == 0 else ids[:, -1:]
            logits = me.head(me.layer(me.embed(last), cache))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        return ids


def test_a_cache_in_a_variable_of_a_method_is_named_and_holds_the_prompt(tmp_path):
    torch.manual_seed(0)
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        Speaking().eval().infer(torch.tensor([[1, 2, 3]]), 3)
    assert [one.model for one in recording.report.traces] == ["Speaking"]
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.cache_step(n, 0).length_after for n in range(3)] == [3, 4, 5]
    assert trace.meta.cache_layers[0].where == (
        "local cache['k'] [1, 2, rows, 8], local cache['v'] [1, 2, rows, 8]"
    )


def test_the_axis_of_heads_is_not_taken_for_that_of_rows(tmp_path):
    torch.manual_seed(0)
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        Speaking().eval().infer(torch.tensor([[1]]), 3)  # a prompt of one token: one row of each
    layer = kvtrace.open(tmp_path / "a.kvt").meta.cache_layers[0]
    assert (layer.kind, layer.capacity) == ("dynamic", None)
