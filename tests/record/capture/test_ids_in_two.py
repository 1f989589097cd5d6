"""Forwards that are given ids in two arguments at each step, and compute the last rows alone."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import DIVERGED
from kvtrace.analysis.checks.verdict import check

TEXT = [3, 5, 7, 9, 11]


class Drawing(nn.Module):
    """Goes on with a text in tokens of an image, which stand behind it; `begins`: a row in front.

    It is given both whole at each step, and computes what its cache does not have.
    """

    def __init__(self, begins=False):
        torch.manual_seed(0)
        super().__init__()
        self.text, self.image = nn.Embedding(30, 16), nn.Embedding(30, 16)
        self.places, self.qkv, self.head = (
            nn.Embedding(32, 16),
            nn.Linear(16, 48),
            nn.Linear(16, 30),
        )
        self.begins = begins

    def rows(self, text, image):
        first = [self.text(text[:, :1] * 0)] if self.begins else []
        return torch.cat((*first, self.text(text), self.image(image)), 1)

    def forward(self, text, image, cache):
        x = self.rows(text, image)
        x = (x + self.places.weight[: x.shape[1]])[:, cache["k"].shape[2] if cache else 0 :]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if cache:
            k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
        cache |= {"k": k, "v": v}
        new, seq = q.shape[2], k.shape[2]
        scores = (q @ k.mT * 8**-0.5).masked_fill(
            torch.ones(new, seq).triu(seq - new + 1).bool(), -1e9
        )
        return self.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Kinds(Drawing):
    """The second ids are kinds of the same tokens."""

    def rows(self, text, image):
        return self.text(text) + self.image(image)


@torch.no_grad()
def drawn(model, path, beside):
    text = image = torch.tensor([TEXT])
    text, image = (text, image[:, :0]) if beside else (text, text)
    cache = {}
    with kvtrace.record(model, path):
        for _ in range(8):
            token = model(text, image, cache)[:, -1:].argmax(-1)
            image = torch.cat((image, token), 1)
            text = text if beside else torch.cat((text, token), 1)
    return kvtrace.open(path), text[0].tolist()


@pytest.mark.parametrize("begins", [False, True])
def test_tokens_of_the_second_are_unknown_rather_than_those_of_the_first(begins, tmp_path):
    trace, _ = drawn(Drawing(begins), tmp_path / "a.kvt", beside=True)
    assert [step.tokens for step in trace][1:] == [((-1,),)] * 7
    assert check(trace).verdict != DIVERGED


def test_ids_of_another_kind_leave_the_tokens_what_they_are(tmp_path):
    trace, text = drawn(Kinds(), tmp_path / "a.kvt", beside=False)
    assert [step.tokens for step in trace][1:] == [((token,),) for token in text[5:-1]]
