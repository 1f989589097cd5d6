"""Ids in other shapes than [sequences, new]: several for one position, or a list of sequences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace


class Codes(nn.Module):
    """Sums the embeddings of all ids of a position, and attends without a cache."""

    def __init__(self, books_first: bool) -> None:
        super().__init__()
        self.books_first = books_first
        self.books = nn.ModuleList(nn.Embedding(20, 16) for _ in range(3))
        self.mix, self.head = nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, sequence):
        codes = sequence if self.books_first else sequence.transpose(1, 2)
        x = sum(book(codes[:, n]) for n, book in enumerate(self.books))
        q, k, v = self.mix(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(x)


@pytest.mark.parametrize("books_first", [True, False], ids=["[B, K, T]", "[B, T, K]"])
def test_ids_of_three_dimensions_are_a_step_whoever_calls(tmp_path, books_first):
    model = Codes(books_first).eval()
    codes = torch.arange(15).reshape(1, 3, 5)
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        model(codes if books_first else codes.transpose(1, 2))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(0).tokens == ((0, 1, 2, 3, 4),)
    assert [note.text for note in trace.notes] == [
        "could not compute the recomputed lane: it takes 3 ids for one position, and the first of "
        "them is recorded"
    ]


class Lists(nn.Module):
    """Takes a list of sequences, as speech models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, text_list):
        x = nn.utils.rnn.pad_sequence([self.embed(ids) for ids in text_list], batch_first=True)
        q, k, v = self.mix(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(x)


def test_a_list_of_sequences_is_a_batch_and_what_a_shorter_one_lacks_is_no_token(tmp_path):
    model = Lists().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        model([torch.tensor([3, 1, 4]), torch.tensor([1, 5])])
    assert kvtrace.open(tmp_path / "a.kvt").step(0).tokens == ((3, 1, 4), (1, 5, -1))


def test_ids_that_are_not_known_are_no_words_and_choose_nothing(tmp_path):
    model = Lists().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        for size in (2, 3):
            model([torch.arange(size), torch.arange(1)])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.token_text(token) for token in (*trace.step(0).tokens[1], 7)] == [
        "<0>",
        "–",
        "<7>",
    ]
    assert trace.chosen(0, 1) is None


class Rows(Lists):
    """A model without a head: what it returns are rows, not logits."""

    def forward(self, text_list):
        x = nn.utils.rnn.pad_sequence([self.embed(ids) for ids in text_list], batch_first=True)
        q, k, v = self.mix(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("kind", "seen"), [(Lists, 1), (Rows, 0)])
def test_rows_of_a_model_without_a_head_are_no_logits(tmp_path, kind, seen):
    model = kind().eval()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        model([torch.tensor([3, 1, 4])])
    assert len(kvtrace.open(tmp_path / "a.kvt").step(0).top) == seen
