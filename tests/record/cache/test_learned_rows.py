"""Learned rows in front of those of the tokens: they stand for no token, and shift no position."""

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import check
from kvtrace.trace import NO_TOKEN, Tensor

LEARNED, HEADS, DIM = 3, 2, 8


class Attention(nn.Module):
    """Memory rows as in x-transformers: put in front at each call, or kept in the cache."""

    def __init__(self, *, kept):
        super().__init__()
        self.kept = kept
        self.loses = lambda cache: cache
        self.qkv = nn.Linear(HEADS * DIM, 3 * HEADS * DIM)
        self.out = nn.Linear(HEADS * DIM, HEADS * DIM)
        self.memory = nn.Parameter(torch.randn(2, 1, HEADS, LEARNED, DIM))

    def forward(self, x, cache):
        split = self.qkv(x).unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4)
        q, new = split[0], split[1:]
        if cache is None and self.kept:
            cache = self.memory.expand(-1, x.shape[0], -1, -1, -1)
        elif self.kept:
            cache = self.loses(cache)
        cache = new if cache is None else torch.cat([cache, new], dim=3)
        rows = cache
        if not self.kept:
            rows = torch.cat([self.memory.expand(-1, x.shape[0], -1, -1, -1), rows], dim=3)
        seen = torch.ones(x.shape[1], rows.shape[3], dtype=torch.bool)
        seen = seen.tril(rows.shape[3] - x.shape[1])
        scores = q @ rows[0].mT * DIM**-0.5
        mixed = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ rows[1]
        return self.out(mixed.transpose(1, 2).flatten(2)), cache


class Model(nn.Module):
    def __init__(self, *, kept):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, HEADS * DIM)
        self.layers = nn.ModuleList(Attention(kept=kept) for _ in range(2))
        self.head = nn.Linear(HEADS * DIM, 40)

    def forward(self, ids, past=None):
        x, caches = self.embed(ids), []
        for number, layer in enumerate(self.layers):
            mixed, cache = layer(x, None if past is None else past[number])
            x = x + mixed
            caches.append(cache)
        return self.head(x), caches


@pytest.mark.parametrize("kept", [False, True])
@torch.no_grad()
def test_learned_rows_shift_no_token_and_are_held_only_where_the_cache_holds_them(kept, tmp_path):
    model, past, live = Model(kept=kept), None, []
    prompt = torch.tensor([[5, 7, 9, 11, 6]])
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for ids in (prompt, torch.tensor([[8]]), torch.tensor([[4]])):
            _, past = model(ids, past)
            live.append(past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    learned = [NO_TOKEN + n for n in range(LEARNED)]
    for step, count, caches in zip(trace, (5, 6, 7), live, strict=True):
        assert step.positions[0][-1] == count - 1
        for layer in (0, 1):
            view = trace.cache(step.number, layer, 0)
            assert list(view.positions) == [*learned, *range(count)]
            store = trace.site(layer).reads
            runs = step.cache_step(store).kept[0]
            rows = caches[layer][0][0]
            assert sum(run.count for run in runs) == rows.shape[1]
            for tensor, held in zip((Tensor.KEYS, Tensor.VALUES), caches[layer], strict=True):
                found = [
                    torch.tensor(trace.source.cells(store, tensor, run.cell, run.count, None))
                    for run in runs
                ]
                assert torch.equal(torch.cat(found, 1), held[0])
    held = 2 * 2 * HEADS * DIM * 4 * (7 + LEARNED * kept)
    assert trace.step(2).cost.cache_bytes == held
    assert {layer.kind for layer in trace.meta.cache_layers} == {"dynamic"}
    assert check(trace).findings == ()


@pytest.mark.parametrize(
    ("spoil", "name", "evidence"),
    [
        (lambda cache: cache[:, :, :, LEARNED:], "EVICTED-EARLY", "lacks the oldest 3"),
        (lambda cache: torch.cat([cache[:, :, :, :LEARNED], cache], 3), "DUPLICATE-ROWS", "3 rows"),
        (lambda cache: torch.cat([cache[:1], cache[1:].roll(1, 3)]), "MISALIGNED", "place"),
    ],
)
@torch.no_grad()
def test_learned_rows_that_a_cache_loses_doubles_or_shifts_are_named(
    spoil, name, evidence, tmp_path
):
    model, past = Model(kept=True), None
    for layer in model.layers:
        layer.loses = spoil
        layer.qkv.weight.data *= 4
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for ids in (torch.tensor([[5, 7, 9, 11, 6]]), torch.tensor([[8]]), torch.tensor([[4]])):
            _, past = model(ids, past)
    first = check(kvtrace.open(tmp_path / "a.kvt")).findings[0]
    assert (first.name, first.step, first.layer) == (name, 1, 0)
    assert evidence in first.evidence


@torch.no_grad()
def test_the_other_lane_has_rows_in_front_of_a_text_too(tmp_path):
    model, past = Model(kept=True), None
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        for ids in (torch.tensor([[5, 7, 9, 11, 6]]), torch.tensor([[8]])):
            _, past = model(ids, past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    mine, theirs = (trace.cache(1, 1, 0, lane=lane) for lane in ("cached", "recomputed"))
    np.testing.assert_allclose(mine.keys, theirs.keys, atol=1e-5)
    np.testing.assert_allclose(mine.values, theirs.values, atol=1e-5)
    reference = trace.reference(1, 0, "recomputed")
    assert (reference.places, reference.leading(1).places) == (6, 6 + LEARNED)
    assert reference.rows(1, Tensor.KEYS).shape[1] == reference.visible(1).shape[2] == 6
    assert reference.leading(1).positions.tolist() == mine.positions.tolist()


class Whole(Model):
    """Is given the whole text at every step, and takes the tokens that its cache does not have."""

    def forward(self, ids, past=None):
        return super().forward(ids if past is None else ids[:, -1:], past)


@pytest.mark.parametrize("broken", [False, True])
@torch.no_grad()
def test_rows_behind_learned_ones_are_compared_in_a_model_that_is_given_the_whole_text(
    broken, tmp_path
):
    model, past = Whole(kept=False), None
    text = torch.tensor([[5, 7, 9, 11, 6, 8, 4]])
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for length in (5, 6, 7):
            _, past = model(text[:, :length], past)
            if broken:
                past = [layer.clone() for layer in past]
                past[1][0, :, :, 1] *= 2
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.tokens[0] for step in trace] == [(5, 7, 9, 11, 6), (8,), (4,)]
    verdict = check(trace)
    assert bool(verdict.findings) == broken
    if not broken:
        assert all(far > 0 for _, far in verdict.largest)
