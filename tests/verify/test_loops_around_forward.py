"""Loops that call the parts of a model by hand: only they have its cache, its forward has none."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.checks.report import Report, Trial, together
from kvtrace.analysis.checks.verdict import check

PROMPT = [5, 9, 30, 7, 21, 14, 2, 12, 3, 17]


class Layer(nn.Module):
    """Attention over what it is handed, and its own rows after that."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.qkv.weight.data *= 3

    def forward(self, x, past=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        mask = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]).bool()
        seen = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return x + self.out(seen.transpose(1, 2).flatten(2)), (k, v)


class ByHand(nn.Module):
    """Its forward reads whole texts; its loop calls the layers, and keeps their rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(40, 32), nn.Embedding(64, 32)
        self.layers, self.head = nn.ModuleList([Layer(), Layer()]), nn.Linear(32, 40)

    def embed(self, ids, start):
        return self.tokens(ids) + self.places(torch.arange(start, start + ids.shape[1]))

    def forward(self, ids):
        x = self.embed(ids, 0)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)

    def start(self, length):
        return length

    @torch.no_grad()
    def generate(self, ids, max_new_tokens):
        caches = [None for _ in self.layers]
        new, start = ids, 0
        for _ in range(max_new_tokens):
            x = self.embed(new, start)
            for at, layer in enumerate(self.layers):
                x, caches[at] = layer(x, caches[at])
            start = self.start(ids.shape[1])
            new = self.head(x[:, -1]).argmax(-1, keepdim=True)
            ids = torch.cat((ids, new), 1)
        return ids


class OffByOne(ByHand):
    def start(self, length):
        return length - 1


def own(report):
    return next(one for one in report.trials if one.name.startswith("its own"))


def test_what_only_a_loop_keeps_is_checked_in_that_loop():
    report = kvtrace.check(ByHand().eval(), [PROMPT])
    assert own(report).report.ok, own(report)
    assert report.verdict == EQUAL
    assert report.trials[0].report.keeps_nothing


def test_what_is_wrong_in_a_loop_around_forward_is_named():
    report = kvtrace.check(OffByOne().eval(), [PROMPT])
    assert report.verdict == DIVERGED
    assert (report.findings[0].name, report.findings[0].step) == ("POSITION-EMBEDDING", 1)


@pytest.mark.parametrize("essential", [True, False])
def test_no_cache_at_all_is_no_pass(essential):
    nothing = Report(UNCHECKED, reason="no cache", keeps_nothing=True)
    trials = [Trial("a", nothing), Trial("b", nothing, essential=essential)]
    assert together(trials).verdict == UNCHECKED


def test_a_run_that_failed_is_no_pass_whatever_another_one_says():
    trials = [Trial("a", Report(UNCHECKED, reason="it raised")), Trial("b", Report(EQUAL))]
    assert together(trials).verdict == UNCHECKED


class Through(ByHand):
    """Looks its ids up beside the model's table, as nobody follows."""

    def embed(self, ids, start):
        return self.tokens.weight.t().contiguous().t()[ids] + self.places.weight[start + 1]


class Seeing(ByHand):
    """An image is read between the look-up and the call, by a part that attends, too."""

    def __init__(self):
        super().__init__()
        self.sees = Layer()

    def forward(self, ids=None, inputs_embeds=None):
        x = self.tokens(ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)

    @torch.no_grad()
    def generate(self, ids, max_new_tokens):
        for _ in range(max_new_tokens):
            x = self.tokens(ids)
            seen, _ = self.sees(torch.ones(1, 4, 32))
            logits = self(inputs_embeds=torch.cat((seen, x), 1))
            ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), 1)
        return ids


def test_who_watches_a_model_whose_layers_are_called_by_hand_sees_its_steps(tmp_path):
    model, ids = ByHand().eval(), torch.tensor([PROMPT])
    expected = model.generate(ids, 4)
    with kvtrace.record(model, tmp_path / "by-hand.kvt"):
        assert torch.equal(model.generate(ids, 4), expected)
    trace = kvtrace.open(tmp_path / "by-hand.kvt")
    assert [len(step.tokens[0]) for step in trace] == [10, 1, 1, 1]
    assert check(trace).verdict == EQUAL
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_a_wrong_loop_by_hand_is_named_where_its_model_is_watched(tmp_path):
    model = OffByOne().eval()
    with kvtrace.record(model, tmp_path / "wrong.kvt"):
        model.generate(torch.tensor([PROMPT]), 4)
    report = check(kvtrace.open(tmp_path / "wrong.kvt"))
    assert report.findings[0].name == "POSITION-EMBEDDING"


def test_what_reads_an_image_after_the_look_up_begins_no_step(tmp_path):
    model = Seeing().eval()
    with kvtrace.record(model, tmp_path / "image.kvt"):
        model.generate(torch.tensor([PROMPT]), 2)
    trace = kvtrace.open(tmp_path / "image.kvt")
    assert [len(trace.meta.sites), len(trace)] == [2, 2]


def test_layers_by_hand_before_the_model_is_called_are_a_step_of_their_own(tmp_path):
    model, ids = ByHand().eval(), torch.tensor([PROMPT])
    with kvtrace.record(model, tmp_path / "both.kvt"), torch.no_grad():
        model.generate(ids, 1)
        model(ids)
        model.layers[0](model.embed(ids, 0))
    assert len(kvtrace.open(tmp_path / "both.kvt")) == 2


def test_who_watches_a_model_that_nobody_calls_is_told_so(tmp_path):
    model, ids = Through().eval(), torch.tensor([PROMPT])
    with kvtrace.record(model, tmp_path / "none.kvt"):
        model.generate(ids, 3)
    told = kvtrace.open(tmp_path / "none.kvt").meta.not_recorded
    assert "no call of the model was seen" in told[0]


def test_steps_of_one_token_that_read_nothing_are_not_said_to_compute_every_row(tmp_path):
    model = ByHand().eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "single.kvt"):
        for token in PROMPT:
            model(torch.tensor([[token]]))
    report = check(kvtrace.open(tmp_path / "single.kvt"))
    assert report.verdict == UNCHECKED
    assert "its steps of one token each read no row before it" in report.reason
