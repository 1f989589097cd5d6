"""Models with several causes at once: each is told that the others don't explain."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import check
from kvtrace.files import open_trace
from verify import bugs

HEADS, DIM, LAYERS, PROMPT, TOTAL = 4, 16, 3, 6, 12


class Attention(nn.Module):
    """Its cache grows; what it reads, hides and does to scores can be replaced."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192, bias=False), nn.Linear(64, 64, bias=False)
        self.read = lambda keys, values, start: (keys, values)
        self.hide = lambda seen, start: seen
        self.score = lambda scores, start: scores
        self.held = None

    def forward(self, x, start):
        shape = (*x.shape[:2], HEADS, DIM)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if start:
            k, v = (torch.cat(pair, 2) for pair in zip(self.held, (k, v), strict=True))
        self.held = (k, v)
        if start:
            k, v = self.read(k, v, start)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        scores = q @ k.transpose(-1, -2) * DIM**-0.5
        if start:
            seen, scores = self.hide(seen, start), self.score(scores, start)
        mixed = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Decoder(nn.Module):
    def __init__(self, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(50, 64), nn.Embedding(32, 64)
        self.layers = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.mlps = nn.ModuleList(nn.Linear(64, 64) for _ in range(LAYERS))
        self.head = nn.Linear(64, 50)
        self.after = after or (lambda x: x)

    def forward(self, idx, start):
        x = self.embed(idx) + self.places(torch.arange(start, start + idx.shape[1]))
        for layer, mlp in zip(self.layers, self.mlps, strict=True):
            x = self.after(x + layer(x, start))
            x = x + torch.tanh(mlp(x))
        return self.head(x)


def reported(model, path, between=lambda start: None):
    """What was found, and the trace."""
    tokens = torch.randperm(50, generator=torch.Generator().manual_seed(1))[None, :TOTAL]
    with kvtrace.record(model, path, keep_rows=True), torch.no_grad():
        for start, end in [(0, PROMPT), *((n, n + 1) for n in range(PROMPT, TOTAL))]:
            between(start)
            model(tokens[:, start:end], start)
    trace = open_trace(path)
    return check(trace).findings, trace


def found(model, path):
    """(name, step, layer) of all that was found."""
    findings, trace = reported(model, path)
    return [(one.name, one.step, trace.site(one.layer).layer) for one in findings]


def old(rows, by):
    """Rows before the newest one, times a number."""
    return torch.cat([rows[:, :, :-1] * by, rows[:, :, -1:]], 2)


def twice(keys, values, start):
    """The first row once more, from the fourth decode step on."""
    if start < PROMPT + 3:
        return keys, values
    return tuple(torch.cat([rows[:, :, :1], rows], 2) for rows in (keys, values))


def first_hidden(seen, _):
    seen = seen.clone()
    seen[:, 0] = False
    return seen


@pytest.fixture
def model():
    return Decoder().eval()


def test_a_model_without_a_cause_has_no_finding(model, tmp_path):
    assert found(model, tmp_path / "a.kvt") == []


def test_a_cause_at_an_earlier_layer_is_told_when_it_comes_later(model, tmp_path):
    model.layers[1].read = lambda keys, values, _: (keys[:, :, 1:], values[:, :, 1:])
    model.layers[0].read = twice
    assert found(model, tmp_path / "a.kvt") == [
        ("EVICTED-EARLY", 1, 1),
        ("DUPLICATE-ROWS", 4, 0),
    ]


def test_what_hides_rows_does_not_hide_what_the_others_hold(model, tmp_path):
    model.layers[1].hide = first_hidden
    model.layers[1].read = lambda keys, values, _: (old(keys, 0.5), values)
    assert found(model, tmp_path / "a.kvt") == [
        ("EVICTED-EARLY", 1, 1),
        ("OLD-ROWS-SCALED", 1, 1),
    ]


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (lambda scores, _: 0.4 * torch.tanh(scores / 0.4), "SCORE-NONLINEAR"),
        (lambda scores, _: scores + 0.3 * torch.arange(scores.shape[-1]), "SCORE-BIAS"),
    ],
)
def test_scores_of_a_later_layer_have_a_cause_of_their_own(model, tmp_path, score, name):
    model.layers[0].score = lambda scores, _: scores * 0.5
    model.layers[2].score = score
    assert found(model, tmp_path / "a.kvt") == [("SCALE", 1, 0), (name, 1, 2)]


def test_a_cause_is_told_in_front_of_a_layer_that_looks_ahead(tmp_path):
    model = Decoder(after=lambda x: x - x.mean(1, keepdim=True)).eval()
    model.layers[0].read = lambda keys, values, _: (old(keys, 0.5), values)
    assert found(model, tmp_path / "a.kvt") == [("NOT-CAUSAL", 1, 1), ("OLD-ROWS-SCALED", 1, 0)]


def test_a_layer_that_looks_ahead_alone_is_one_finding(tmp_path):
    model = Decoder(after=lambda x: x - x.mean(1, keepdim=True)).eval()
    assert found(model, tmp_path / "a.kvt") == [("NOT-CAUSAL", 1, 1)]


def test_rows_cached_with_other_weights_are_no_rows_of_a_wrong_scale(model, tmp_path):
    def between(start):
        if start == PROMPT + 2:
            with torch.no_grad():
                model.layers[0].qkv.weight[128:] *= 0.9  # the values

    findings, _ = reported(model, tmp_path / "a.kvt", between)
    assert (findings[0].name, findings[0].step) == ("CONTENT", 3)
    assert "cached with other weights" in findings[0].evidence


def test_a_bias_that_is_added_with_the_cache_alone_is_told():
    model = bugs.llama()
    attention = model.model.layers[0].self_attn
    own = attention.forward

    def forward(*given, past_key_values=None, **more):
        held = 0 if past_key_values is None else past_key_values.get_seq_length()
        if held:
            added = torch.zeros(1, 1, 1, held + 1)
            added[..., -1] = 1.5
            more["attention_mask"] = added
        return own(*given, past_key_values=past_key_values, **more)

    attention.forward = forward
    report = kvtrace.check(model, [5, 9, 30, 7, 81, 44, 9, 12], new_tokens=3, ways=())
    assert report.findings[0].name == "SCORE-BIAS"
    assert "none is seen without the cache" in report.findings[0].evidence
