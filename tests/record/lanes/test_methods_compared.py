"""Steps that are calls of a method other than forward are compared like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import EQUAL
from kvtrace.analysis.checks.verdict import check
from kvtrace.trace import Tensor


class Layer(nn.Module):
    """Attention as a method of a layer."""

    times = 1

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)

    def attend(self, x, past=None):
        q, k, v = self.mix(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        q, causal = q * self.times, q.shape[2] > 1
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
        return x + out, (k, v)


class Stepping(nn.Module):
    """Two methods decode, with the cache inside; no forward."""

    skipped = 0
    """How many positions a step is told too many."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(32, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(16, 20)
        self.kept = [None, None]

    def prefill(self, prompt):
        self.kept = [None, None]
        return self.run(prompt, 0)

    def decode_step(self, token, at):
        return self.run(token, at + self.skipped)

    def run(self, ids, at):
        x = self.embed(ids) + self.places(torch.arange(at, at + ids.shape[1]))
        for number, layer in enumerate(self.layers):
            x, self.kept[number] = layer.attend(x, self.kept[number])
        return self.head(x)[:, -1:]


class Trained(Stepping):
    """Beside them, a forward that knows nothing of the cache."""

    def forward(self, ids):
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x, _ = layer.attend(x)
        return self.head(x)


class Folding(Trained):
    """Its forward multiplies queries, not scores."""

    def forward(self, ids):
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            q, k, v = layer.mix(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
            q, hidden = q * 8**-0.5, torch.ones(ids.shape[1], ids.shape[1]).triu(1) > 0
            out = (q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v
            x = x + out.transpose(1, 2).flatten(2)
        return self.head(x)


class Overscaled(Folding):
    """And its methods' queries are twice what they should be."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.times = 2


class Placed(Stepping):
    """Each layer looks its places up in a table that is no weight, after those before attended."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.randn(32, 16) / 4)

    def run(self, ids, at):
        x, places = self.embed(ids), torch.arange(at, at + ids.shape[1])
        for number, layer in enumerate(self.layers):
            x, self.kept[number] = layer.attend(x + self.turns[places], self.kept[number])
        return self.head(x)[:, -1:]


class Skipping(Trained):
    """Counts its positions wrongly."""

    skipped = 1


def decoded(model, path, **options):
    torch.manual_seed(0)
    model = model().eval()
    with torch.no_grad(), kvtrace.record(path, **options):
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        logits = model.prefill(ids)
        for at in range(5, 9):
            logits = model.decode_step(logits[:, -1].argmax(-1, keepdim=True), at)
    return kvtrace.open(path)


@pytest.mark.parametrize(
    ("model", "reference"), [(Trained, "bare"), (Stepping, "replayed")], ids=["forward", "method"]
)
def test_its_forward_is_the_reference_or_else_the_method_that_was_called_first(
    tmp_path, model, reference
):
    trace = decoded(model, tmp_path / "a.kvt")
    lane = trace.meta.lane("recomputed")
    assert lane is not None
    assert lane.reference == reference
    assert check(trace).verdict == EQUAL


def test_a_scale_may_be_in_the_queries_of_one_way_and_beside_those_of_another(tmp_path):
    assert check(decoded(Folding, tmp_path / "a.kvt")).verdict == EQUAL
    assert check(decoded(Overscaled, tmp_path / "b.kvt")).findings[0].name == "SCALE"


def test_rows_kept_beside_each_step_have_the_scale_where_the_cached_ones_have_it(tmp_path):
    trace = decoded(Folding, tmp_path / "a.kvt", recompute="each")
    assert check(trace).verdict == EQUAL
    for layer in range(len(trace.meta.sites)):
        reference = trace.reference(4)
        assert reference is not None
        queries = reference.new_rows(layer, Tensor.QUERIES, None)
        np.testing.assert_allclose(trace.queries(4, layer), queries, atol=1e-5)


def test_places_that_a_method_looks_up_in_a_table_are_neither_ids_nor_steps(tmp_path):
    trace = decoded(Placed, tmp_path / "a.kvt")
    assert trace.meta.model.class_name == "Placed"
    assert [len(step.tokens[0]) for step in trace] == [5, 1, 1, 1, 1]
    assert trace.step(0).tokens[0] == (3, 1, 4, 1, 5)
    assert [trace.cache_step(n, 1).length_after for n in range(5)] == [5, 6, 7, 8, 9]
    assert check(trace).verdict == EQUAL


def test_what_a_method_does_wrong_is_found(tmp_path):
    found = check(decoded(Skipping, tmp_path / "a.kvt")).findings[0]
    assert (found.name, found.step, found.layer) == ("POSITION-EMBEDDING", 1, 0)


class Translating(nn.Module):
    """Reads a source by one method, and writes by another that is given the whole prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.enc_layers = nn.ModuleList([Mixing()])
        self.dec_layers = nn.ModuleList([Mixing(), Mixing()])

    def look_up(self, ids):
        return self.embed(ids)

    def encode(self, src):
        x = self.look_up(src)
        for layer in self.enc_layers:
            x = layer(x, x, causal=False)
        return x

    def decode_step(self, state, written):
        x = self.look_up(written)
        for layer in self.dec_layers:
            x = layer(x, x, causal=True) + layer(x, state, causal=False)
        return self.head(x)[:, -1]


class Mixing(nn.Module):
    """Attention to whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, source, causal):
        q = self.q(x).view(1, -1, 2, 8).transpose(1, 2)
        k, v = (part(source).view(1, -1, 2, 8).transpose(1, 2) for part in (self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return out.transpose(1, 2).flatten(2)


def test_what_encodes_is_no_step_of_the_text_and_what_decodes_is_compared(tmp_path):
    torch.manual_seed(0)
    model = Translating().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        state = model.encode(torch.tensor([[2, 7, 1, 8, 2, 8]]))
        written = torch.tensor([[1]])
        for _ in range(3):
            chosen = model.decode_step(state, written).argmax(-1, keepdim=True)
            written = torch.cat([written, chosen], 1)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.site(site).kind for site in trace.step(0).sites[0].sites] == ["encoder"]
    assert [step.tokens[0][:1] for step in trace][1:] == [(1,)] * 3
    assert [bool(trace.compared(n, "recomputed")) for n in range(4)] == [False, True, True, True]


def test_a_layer_whose_methods_are_called_is_one_place_wherever_it_attends(tmp_path):
    torch.manual_seed(0)
    table, body = nn.Embedding(20, 16), Body()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        _, kept = body.prefill(table(torch.tensor([[3, 1, 4]])))
        for token in (1, 5):
            _, kept = body.go_on(table(torch.tensor([[token]])), kept)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [site.module for site in trace.meta.sites] == ["layers.0", "layers.1"]
    assert [trace.cache_step(n, 1).length_after for n in range(3)] == [3, 4, 5]


class Twice(Layer):
    """Attends in one method to a prompt, and in another to what follows."""

    def first(self, x):
        q, k, v = self.mix(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + out.transpose(1, 2).flatten(2), (k, v)


class Body(nn.Module):
    """Layers that are given rows, not ids, and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Twice() for _ in range(2))

    def prefill(self, x):
        kept = []
        for layer in self.layers:
            x, rows = layer.first(x)
            kept.append(rows)
        return x, kept

    def go_on(self, x, kept):
        new = []
        for layer, rows in zip(self.layers, kept, strict=True):
            x, rows = layer.attend(x, rows)
            new.append(rows)
        return x, new


class Looked(nn.Module):
    """What people put around a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.places = nn.Parameter(torch.randn(1, 32, 16))

    def forward(self, ids):
        return self.norm(self.table(ids) * 4 + self.places[:, : ids.shape[1]])


class Parts(Translating):
    """Looks ids up in a module that is called on its own, as the tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Looked()

    def decode_step(self, state, written, seen):
        x = self.look_up(written)
        for layer in self.dec_layers:
            parts = (layer.q, layer.k, layer.v)
            q, k, v = (part(x).view(1, -1, 2, 8).transpose(1, 2) for part in parts)
            scores = (q @ k.mT / 8**0.5).masked_fill(seen == 0, -torch.inf)
            x = layer(x, state, causal=False) + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(x)[:, -1]


def test_a_table_with_something_around_it_is_no_model(tmp_path):
    torch.manual_seed(0)
    model = Parts().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        state, written = model.encode(torch.tensor([[2, 7, 1, 8]])), torch.tensor([[1]])
        for new in range(1, 4):
            seen = torch.ones(new, new, dtype=torch.long).tril()
            chosen = model.decode_step(state, written, seen).argmax(-1, keepdim=True)
            written = torch.cat([written, chosen], 1)
    assert [(one.model, one.steps, one.lanes) for one in recording.report.traces] == [
        ("Parts", 4, ())  # a mask of one token does not tell what later ones see
    ]
    trace = kvtrace.open(tmp_path / "a.kvt")
    kinds = sorted(site.kind for site in trace.meta.sites)
    assert kinds == ["cross", "cross", "encoder", "self", "self"]
    reason = "no KV cache was at work in Parts: its steps compute every row anew"
    assert check(trace).reason == reason


def written_by_a_function(model, ids, steps):
    """Generation that calls the parts of a model one by one, its cache in a variable."""
    kept = [None, None]
    for step in range(steps):
        new = ids if step == 0 else ids[:, -1:]
        start = ids.shape[1] - new.shape[1]
        x = model.embed(new) + model.places(torch.arange(start, ids.shape[1]))
        for number, layer in enumerate(model.layers):
            x, kept[number] = layer.attend(x, kept[number])
        ids = torch.cat([ids, model.head(x)[:, -1:].argmax(-1)], 1)
    return ids


def test_a_function_that_calls_the_parts_of_a_model_makes_steps_of_it(tmp_path):
    torch.manual_seed(0)
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        written_by_a_function(Trained().eval(), torch.tensor([[3, 1, 4]]), 4)
    assert [(one.model, one.steps) for one in recording.report.traces] == [("Trained", 4)]
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [site.module for site in trace.meta.sites] == ["layers.0", "layers.1"]
    assert [trace.cache_step(n, 0).length_after for n in range(4)] == [3, 4, 5, 6]
    assert trace.meta.lanes[0].reference == "bare"
    assert check(trace).verdict == EQUAL
