"""Methods that are given rows instead of ids, called from outside: each call is a step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace

WIDTH, HEADS = 16, 2


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def parts(self, rows):
        split = (*rows.shape[:-1], HEADS, WIDTH // HEADS)
        return (one.reshape(split).transpose(1, 2) for one in self.qkv(rows).chunk(3, -1))

    def forward(self, rows):
        q, k, v = self.parts(rows)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).flatten(2)), (k, v)

    def forward_step(self, row, position, cache):
        q, k, v = self.parts(row[:, None])
        cache[0][:, :, position], cache[1][:, :, position] = k[:, :, 0], v[:, :, 0]
        keys, values = (one[:, :, : position + 1] for one in cache)
        weights = torch.softmax(q @ keys.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5, -1)
        return self.out((weights @ values).transpose(1, 2).flatten(2))[:, 0]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList(Attend() for _ in range(2))
        shape = (2, 1, HEADS, 32, WIDTH // HEADS)
        self.cache = [torch.zeros(shape) for _ in self.layers]

    def forward(self, inputs_embeds):
        for layer, cache in zip(self.layers, self.cache, strict=True):
            more, kept = layer(inputs_embeds)
            inputs_embeds = inputs_embeds + more
            for part, rows in zip(cache, kept, strict=True):
                part[:, :, : rows.shape[2]] = rows
        return inputs_embeds

    def forward_step(self, inputs_embeds, position):
        for layer, cache in zip(self.layers, self.cache, strict=True):
            inputs_embeds = inputs_embeds + layer.forward_step(inputs_embeds, position, cache)
        return inputs_embeds


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm = Backbone()
        self.code = nn.Linear(WIDTH, WIDTH)

    def run(self, rows, steps, prefill):
        return self.inference(rows, steps, prefill)

    def inference(self, rows, steps, prefill):
        last = self.lm(rows)[:, -1] if prefill else None
        for place in range(0 if prefill else rows.shape[1]):
            last = self.lm.forward_step(rows[:, place], place)
        for place in range(rows.shape[1], rows.shape[1] + steps):
            last = self.lm.forward_step(self.code(last), place)
        return last


def spoken(prefill, by_ids):
    torch.manual_seed(0)
    model = Speech()
    with torch.no_grad():
        ids = torch.tensor([[3, 1, 4, 1]])
        return model.run(model.lm.embed(ids) if by_ids else torch.randn(1, 4, WIDTH), 5, prefill)


@pytest.mark.parametrize("by_ids", [True, False])
@pytest.mark.parametrize("prefill", [True, False])
def test_steps_of_a_method_that_is_given_rows_are_recorded_and_compared(prefill, by_ids, tmp_path):
    plain = spoken(prefill, by_ids)
    before = Backbone.forward_step
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        seen = spoken(prefill, by_ids)
    assert torch.equal(plain, seen)
    assert Backbone.forward_step is before
    (told,) = recording.report.traces
    assert (told.model, told.steps, told.texts, told.sites) == (
        "Backbone",
        6 if prefill else 9,
        1,
        2,
    )
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [site.module for site in trace.meta.sites] == ["layers.0", "layers.1"]
    compared = [trace.compared(number) for number in trace.numbers]
    assert all(one is not None and not one.beyond.any() for one in compared)


def test_a_step_of_rows_that_loses_a_row_of_its_cache_is_found(tmp_path):
    class Forgetful(Backbone):
        def forward_step(self, inputs_embeds, position):
            for cache in self.cache:
                cache[:, :, :, 1] = 0
            return super().forward_step(inputs_embeds, position)

    torch.manual_seed(0)
    model = Forgetful()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        model(torch.randn(1, 4, WIDTH))
        for place in range(4, 8):
            model.forward_step(torch.randn(1, WIDTH), place)
    trace = kvtrace.open(tmp_path / "a.kvt")
    compared = [trace.compared(number) for number in trace.numbers]
    assert [bool((one.beyond > 0).any()) for one in compared] == [False, *[True] * 4]


def test_a_step_without_attention_leaves_nothing_and_later_models_are_seen(tmp_path):
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def step(self, row, state):
            return torch.tanh(self.linear(row) + state)

    cell = Cell()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt") as recording:
        for _ in range(3):
            cell.step(torch.randn(1, WIDTH), torch.zeros(1, WIDTH))
        spoken(True, True)
    assert [one.model for one in recording.report.traces] == ["Backbone"]


def test_rows_that_another_method_of_the_model_looked_up_are_the_step_of_those_ids(tmp_path):
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(20, WIDTH), nn.Embedding(32, WIDTH)
            self.layers = nn.ModuleList(Attend() for _ in range(2))

        def embed(self, ids, places):
            return self.words(ids) + self.places(places)

        def step(self, rows, cache):
            for number, layer in enumerate(self.layers):
                q, k, v = layer.parts(rows)
                if number in cache:
                    k, v = (torch.cat(both, 2) for both in zip(cache[number], (k, v), strict=True))
                cache[number] = k, v
                out = F.scaled_dot_product_attention(q, k, v, is_causal=rows.shape[1] > 1)
                rows = rows + layer.out(out.transpose(1, 2).flatten(2))
            return rows @ self.words.weight.T, cache

    def decoded():
        torch.manual_seed(0)
        model, ids, cache, place, out = Parts(), torch.tensor([[3, 1, 4, 1]]), {}, 0, []
        for _ in range(4):
            rows = model.embed(ids, torch.arange(place, place + ids.shape[1])[None])
            place += ids.shape[1]
            logits, cache = model.step(rows, cache)
            ids = logits[:, -1:].argmax(-1)
            out.append(int(ids))
        return out

    with torch.no_grad():
        expected = decoded()
        with kvtrace.record(tmp_path / "a.kvt"):
            assert decoded() == expected
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.tokens for step in trace] == [
        ((3, 1, 4, 1),),
        *(((one,),) for one in expected[:3]),
    ]
    assert [trace.cache_step(n, 0).length_after for n in trace.numbers] == [4, 5, 6, 7]
    (why,) = [note.text for note in trace.notes if "recomputed" in note.text]
    assert "Parts has no forward" in why


def test_it_is_said_what_a_method_was_given_that_the_forward_does_not_take(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):
        spoken(prefill=True, by_ids=True)
    said = kvtrace.open(tmp_path / "a.kvt").meta.not_recorded
    assert (
        "Backbone.forward_step is given `position`, which Backbone.forward does not take: steps "
        "do not tell of it, nor do other lanes know it"
    ) in said
