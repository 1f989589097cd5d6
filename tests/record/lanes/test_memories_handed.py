"""Texts that go on with state that a step handed back: a pass over tokens alone has none of it."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED, check

SEGMENT = 6
PROMPT = torch.randint(0, 30, (1, 4), generator=torch.Generator().manual_seed(3))


class Summed(nn.Module):
    """Sums a full segment up as k·vᵀ, empties the cache, and hands the sum back."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, ids, cached=None, memories=None):
        x, kept, sums = self.embed(ids), [], []
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if cached is not None:
                k, v = (torch.cat(two, 2) for two in zip(cached[number], (k, v), strict=True))
            rows, new = k.shape[2], q.shape[2]
            later = torch.ones(new, rows).triu(1 + rows - new).bool()
            out = (q @ k.mT * 8**-0.5).masked_fill(later, -1e9).softmax(-1) @ v
            if memories is not None:
                out = out + 0.1 * q @ memories[number]
            kept.append((k, v))
            sums.append(k.mT @ v)
            x = x + out.transpose(1, 2).flatten(2)
        full = kept[0][0].shape[2] == SEGMENT
        return (self.head(x), None, sums) if full else (self.head(x), kept, memories)

    @torch.no_grad()
    def generate(self, ids, count, *, lost=()):
        """New tokens; before steps that are `lost`, the cache loses its first row."""
        cached = memories = None
        for step in range(count):
            fed = ids[:, -1:] if step else ids
            if step in lost:
                cached = [(k[:, :, 1:], v[:, :, 1:]) for k, v in cached]
            logits, cached, memories = self(fed, cached, memories)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        return ids


class Behind(nn.Module):
    """Hidden states of a full segment stand before the next one, in the last layer alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, ids, memory=None):
        x = self.embed(ids)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            seen = torch.cat([memory, x], 1) if last and memory is not None else x
            left = x
            q, k, v = (
                one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(seen).chunk(3, -1)
            )
            q = q[:, :, -x.shape[1] :]
            rows, new = k.shape[2], q.shape[2]
            later = torch.ones(new, rows).triu(1 + rows - new).bool()
            out = (q @ k.mT * 8**-0.5).masked_fill(later, -1e9).softmax(-1) @ v
            x = x + out.transpose(1, 2).flatten(2)
        return self.head(x), left

    @torch.no_grad()
    def generate(self, ids, count):
        memory, begun = None, 0
        for _ in range(count):
            logits, left = self(ids[:, begun:], memory)
            if ids.shape[1] - begun == SEGMENT:
                memory, begun = left, ids.shape[1]
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        return ids


def recorded(path, run):
    with kvtrace.record(path):
        run()
    return kvtrace.open(path)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_a_sum_that_stands_for_an_emptied_cache_is_no_lost_history(mode, tmp_path):
    model = Summed().eval()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        model.generate(PROMPT, 12)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "3 of 12 steps were compared and are equal within rounding" in report.reason
    assert "step 3 goes on with `memories`, which a step handed back" in report.reason


def test_a_row_that_is_lost_before_the_memory_comes_is_still_named(tmp_path):
    model = Summed().eval()
    report = check(recorded(tmp_path / "a.kvt", lambda: model.generate(PROMPT, 9, lost=(2,))))
    assert (report.verdict, report.findings[0].step) == (DIVERGED, 2)


def test_a_memory_of_one_layer_hides_no_step_from_its_text(tmp_path):
    model = Behind().eval()
    report = check(recorded(tmp_path / "a.kvt", lambda: model.generate(PROMPT, 14)))
    assert {one.name for one in report.findings} <= {"CACHE-NOT-USED"}


def test_a_cache_that_comes_with_the_second_text_is_compared(tmp_path):
    model = Summed().eval()

    @torch.no_grad()
    def run():
        ids = PROMPT[:, :2]
        for _ in range(3):  # without any cache
            ids = torch.cat([ids, model(ids)[0][:, -1:].argmax(-1)], 1)
        model.generate(PROMPT[:, :2], 4)

    report = check(recorded(tmp_path / "a.kvt", run))
    assert (report.verdict, report.findings) == (EQUAL, ())
