"""Programs that call a model, and elsewhere its layers one by one: both are its steps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace
from kvtrace.analysis.checks.verdict import check


class Layer(nn.Module):
    """Attention with a cache that is passed in and comes back.

    Attributes:
        looks_ahead: Its prompts see all of themselves where a cache is asked for.
    """

    def __init__(self, looks_ahead):
        super().__init__()
        self.qkv, self.out, self.looks_ahead = nn.Linear(16, 48), nn.Linear(16, 16), looks_ahead

    def forward(self, x, past=None, use_cache=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        causal = past is None and not (use_cache and self.looks_ahead)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return x + self.out(y.transpose(1, 2).flatten(2)), (k, v)


class Small(nn.Module):
    """Its forward knows no cache; its own loop calls the layers."""

    def __init__(self, looks_ahead=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(30, 16), nn.Embedding(24, 16)
        self.layers = nn.ModuleList(Layer(looks_ahead) for _ in range(2))
        self.head = nn.Linear(16, 30)

    def forward(self, ids, targets=None):
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x, _ = layer(x)
        logits = self.head(x)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    @torch.no_grad()
    def write(self, ids, count):
        given, start, kept = ids, 0, [None, None]
        for _ in range(count):
            x = self.embed(given) + self.places(torch.arange(start, start + given.shape[1]))
            for at, layer in enumerate(self.layers):
                x, kept[at] = layer(x, kept[at], use_cache=True)
            start += given.shape[1]
            given = self.head(x)[:, -1:].argmax(-1)
            ids = torch.cat((ids, given), 1)
        return ids

    @torch.no_grad()
    def write_slowly(self, ids, count):
        for _ in range(count):
            ids = torch.cat((ids, self(ids)[0][:, -1:].argmax(-1)), 1)
        return ids


PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def run(model, path, order):
    with kvtrace.record(path):
        for one in order:
            if one == "loss":
                model(torch.arange(12).view(2, 6), torch.arange(12).view(2, 6))
            elif one == "cached":
                model.write(PROMPT, 4)
            else:
                model.write_slowly(PROMPT, 3)
    return kvtrace.open(path)


@pytest.mark.parametrize(
    ("order", "new"),
    [
        (("cached", "plain"), [5, 1, 1, 1, 5, 6, 7]),
        (("plain", "cached"), [5, 6, 7, 5, 1, 1, 1]),
        (("loss", "cached", "plain"), [5, 1, 1, 1, 5, 6, 7]),
        (("loss", "cached"), [5, 1, 1, 1]),
        (("cached", "plain", "cached"), [5, 1, 1, 1, 5, 6, 7, 5, 1, 1, 1]),
    ],
)
def test_steps_by_hand_and_calls_of_the_model_are_each_their_own(order, new, tmp_path):
    trace = run(Small(), tmp_path / "a.kvt", order)
    assert [step.new for step in trace] == new
    assert [(site.module, site.call) for site in trace.meta.sites] == [
        ("layers.0", 0),
        ("layers.1", 0),
    ]
    report = check(trace)
    assert (report.verdict, report.findings) == ("equal within rounding", ())


def test_what_is_wrong_in_layers_called_by_hand_is_named_after_a_loss_was_measured(tmp_path):
    report = check(run(Small(looks_ahead=True), tmp_path / "a.kvt", ("loss", "cached", "plain")))
    assert (report.findings[0].name, report.findings[0].step) == ("MASK-FUTURE", 0)


def prompted_by_hand(model, ids):
    """Fills the cache of the layers by hand, behind a call of the model."""
    model(ids)
    x = model.embed(ids) + model.places(torch.arange(ids.shape[1]))
    for layer in model.layers:
        x, _ = layer(x, use_cache=True)


def test_layers_that_run_beside_calls_of_a_recorded_model_are_said_to_be_left_out(tmp_path):
    model, ids = Small().eval(), torch.tensor([[3, 1, 4]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        prompted_by_hand(model, ids)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 1
    (note,) = [one for one in trace.meta.not_recorded if "outside of its calls" in one]
    assert "without the model" in note
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_rows_of_ids_that_a_program_looked_up_itself_are_no_layers_left_out(tmp_path):
    model, ids = Small().eval(), torch.tensor([[3, 1, 4]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        model(ids)
        model.embed(ids)
        model(ids)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert not any("outside of its calls" in one for one in trace.meta.not_recorded)
