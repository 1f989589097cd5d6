"""Texts that each begin behind an image of their own, or behind none: ids are fewer than rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace
from kvtrace.analysis.checks.verdict import check


class Seeing(nn.Module):
    """Keeps its rows inside; an image is rows in front of the first token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(40, 32), nn.Embedding(64, 32)
        self.see, self.qkv, self.head = nn.Linear(6, 32), nn.Linear(32, 96), nn.Linear(32, 40)
        self.rows = None

    def forward(self, ids, image=None):
        x = self.tokens(ids)
        if image is not None:
            x = torch.cat((self.see(image), x), 1)
        past = 0 if self.rows is None else self.rows.shape[3]
        x = x + self.places(torch.arange(x.shape[1]) + self.begin(past, image))
        q, *kv = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        self.rows = torch.stack(kv) if past == 0 else torch.cat((self.rows, torch.stack(kv)), 3)
        mask = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool).tril(past)
        y = F.scaled_dot_product_attention(q, *self.rows, attn_mask=mask)
        return self.head(x + y.transpose(1, 2).flatten(2))

    def begin(self, past, image):
        return past


class OneOff(Seeing):
    """A text that goes on behind three rows of an image counts from one place too early."""

    def __init__(self):
        super().__init__()
        self.rows_of_image = 0

    def begin(self, past, image):
        self.rows_of_image = self.rows_of_image if past else 0 if image is None else image.shape[1]
        return past - (past > 0 and self.rows_of_image == 3)


def image(seed, rows):
    return torch.randn(1, rows, 6, generator=torch.Generator().manual_seed(seed))


def read(model, texts, path):
    with kvtrace.record(path), torch.no_grad():
        for ids, seen in texts:
            model.rows = None
            logits = model(torch.tensor([ids]), seen)
            for _ in range(4):
                logits = model(logits[:, -1:].argmax(-1))
    return kvtrace.open(path)


@pytest.mark.parametrize(
    "texts",
    [
        [([4, 5, 6], image(0, 5)), ([4, 5, 6], image(1, 5))],
        [([4, 5, 6], image(0, 5)), ([7, 8, 9, 4, 5], image(1, 2)), ([3], image(2, 1))],
        [([4, 5, 6], image(0, 5)), ([7, 8, 9], None), ([3, 4], image(2, 4))],
        [([4, 5, 6], None), ([7, 8, 9], image(1, 4))],
    ],
    ids=["alike", "of other lengths", "one without", "the first without"],
)
def test_each_text_is_compared_with_its_own_image(texts, tmp_path):
    trace = read(Seeing().eval(), texts, tmp_path / "a.kvt")
    assert all(trace.reference(number) is not None for number in trace.numbers)
    assert check(trace).verdict == "equal within rounding"


def test_a_bug_that_a_later_image_shows_is_named_there(tmp_path):
    texts = [([4, 5, 6], image(0, 5)), ([7, 8, 9], image(1, 3))]
    report = check(read(OneOff().eval(), texts, tmp_path / "a.kvt"))
    assert [(one.name, one.step) for one in report.findings] == [("POSITION-EMBEDDING", 6)]


def test_an_image_within_a_text_is_why_nothing_behind_it_is_compared(tmp_path):
    model = Seeing().eval()
    with kvtrace.record(tmp_path / "a.kvt"), torch.no_grad():
        for ids, seen in [([4, 5, 6, 9, 1], image(0, 3)), ([7], None), ([8, 9], image(1, 3))]:
            model(torch.tensor([ids]), seen)
    reason = check(kvtrace.open(tmp_path / "a.kvt")).reason
    assert "step 2 is the first that was not: 1 steps went on from tokens not recorded" in reason
