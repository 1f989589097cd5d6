"""Ids in other shapes than [sequences, new]: several for one position, or a list of sequences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import EQUAL, UNCHECKED
from kvtrace.analysis.checks.verdict import check


class Codes(nn.Module):
    """Sums the embeddings of all ids of a position; its cache is handed over and comes back."""

    lost = 0
    """Ids of a position, of the last ones, that are not looked at once there is a cache."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.books = nn.ModuleList(nn.Embedding(20, 16) for _ in range(3))
        self.mix, self.head = nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, sequence, past=None):
        if self.layout == "[B * K, T]":
            sequence = sequence.unflatten(0, (-1, 3))
        codes = sequence.transpose(1, 2) if self.layout == "[B, T, K]" else sequence
        used = 3 if past is None else 3 - self.lost
        x = sum(book(codes[:, n]) for n, book in list(enumerate(self.books))[:used])
        q, k, v = self.mix(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        causal = q.shape[2] > 1
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
        return self.head(x), (k, v)


class Losing(Codes):
    """Forgets the last of the three."""

    lost = 1


LAYOUTS = {
    "[B, K, T]": lambda codes: codes,
    "[B, T, K]": lambda codes: codes.transpose(1, 2),
    "[B * K, T]": lambda codes: codes.flatten(0, 1),
}


def played(model, path, layout):
    """Two sequences of five positions, then two more positions."""
    codes = torch.arange(42).reshape(2, 3, 7) % 20
    turn, past = LAYOUTS[layout], None
    with torch.no_grad(), kvtrace.record(path):
        for start, end in ((0, 5), (5, 6), (6, 7)):
            _, past = model(turn(codes[:, :, start:end]), past)
    return kvtrace.open(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_ids_of_a_position_are_a_step_and_all_are_computed_again(tmp_path, layout):
    torch.manual_seed(0)
    trace = played(Codes(layout).eval(), tmp_path / "a.kvt", layout)
    assert trace.step(0).tokens == ((0, 1, 2, 3, 4), (1, 2, 3, 4, 5))
    assert [trace.cache_step(n, 0).length_after for n in range(3)] == [5, 6, 7]
    assert check(trace).verdict == EQUAL


def test_an_id_of_a_position_that_is_lost_is_found(tmp_path):
    torch.manual_seed(0)
    found = check(played(Losing("[B, K, T]").eval(), tmp_path / "a.kvt", "[B, K, T]")).findings[0]
    assert (found.step, found.layer, found.tensor) == (1, 0, "q")


class Speaking(Codes):
    """Reads a text of single ids, and goes on with codes."""

    def forward(self, sequence, past=None):
        several = sequence if sequence.dim() == 3 else sequence[:, None].expand(-1, 3, -1)
        return super().forward(several, past)


def test_a_text_that_goes_on_as_codes_is_said_to_be_compared_with_nothing(tmp_path):
    model = Speaking("[B, K, T]").eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        _, past = model(torch.tensor([[3, 1, 4, 1, 5]]))
        model(torch.tensor([[[9], [2], [6]]]), past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert report.verdict == UNCHECKED
    assert "given one id for each position, and others several" in report.reason


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
