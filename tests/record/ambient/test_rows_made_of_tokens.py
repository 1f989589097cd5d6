"""A program that looks its tokens up itself, and calls the model with rows of them: compared."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, check

PROMPT = torch.tensor([[5, 9, 30, 7, 12]])


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)

    def forward(self, x, past):
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return x + out.transpose(1, 2).flatten(2), (k, v)


class Backbone(nn.Module):
    """Takes rows, as the language model behind an image encoder does, and has the table beside."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(40, 16), nn.Embedding(32, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(16, 40)

    def forward(self, x, cache=None, positions=None):
        x, cache = x + self.places(positions), [None] * 2 if cache is None else cache
        for number, layer in enumerate(self.layers):
            x, cache[number] = layer(x, cache[number])
        return x, cache


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Backbone().eval()


def decoded(model, image=0, late=0, prompt=PROMPT):
    """What a program gets that puts an image before its text, and tells later places wrongly."""
    rows = torch.cat([torch.zeros(len(prompt), image, 16), model.tokens(prompt)], 1)
    x, cache = model(rows, positions=torch.arange(rows.shape[1])[None])
    found = [x]
    for place in range(rows.shape[1], rows.shape[1] + 4):
        now = model.head(x[:, -1:]).argmax(-1)
        x, cache = model(model.tokens(now), cache, positions=torch.tensor([[place + late]]))
        found.append(x)
    return torch.cat(found, 1)


def recorded(model, path, **told):
    with torch.no_grad():
        expected = decoded(model, **told)
        with kvtrace.record(path):
            found = decoded(model, **told)
    assert torch.equal(found, expected)
    return kvtrace.open(path)


@pytest.mark.parametrize("prompt", [PROMPT, torch.cat([PROMPT, PROMPT + 1])])
@pytest.mark.parametrize("image", [0, 3])
def test_rows_that_a_program_made_of_its_tokens_are_what_is_compared(
    model, image, prompt, tmp_path
):
    trace = recorded(model, tmp_path / "a.kvt", image=image, prompt=prompt)

    report = check(trace)
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert any("rows that the program made" in one.text for one in trace.notes)


def test_a_place_that_such_a_program_tells_wrongly_is_named_at_its_step(model, tmp_path):
    report = check(recorded(model, tmp_path / "a.kvt", late=1))

    assert (report.verdict, report.findings[0].step, report.findings[0].layer) == (DIVERGED, 1, 0)


def test_a_step_that_was_given_no_rows_is_not_compared_as_if_they_were_zero(model, tmp_path):
    class Either(Backbone):
        def forward(self, x, cache=None, positions=None):
            x = x if x.is_floating_point() else self.tokens(x)
            return super().forward(x, cache, positions)

    model.__class__ = Either
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        rows = torch.cat([torch.ones(1, 3, 16), model.tokens(PROMPT)], 1)
        x, cache = model(rows, positions=torch.arange(8)[None])
        for place in range(8, 12):
            now = model.head(x[:, -1:]).argmax(-1)
            x, cache = model(now, cache, positions=torch.tensor([[place]]))

    assert check(kvtrace.open(tmp_path / "a.kvt")).findings == ()
