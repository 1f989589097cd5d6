"""A cache is what a call writes to, whatever it is called."""

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, check
from kvtrace.record.lanes.given.written_to import written_to

TEXTS = [[5, 9, 30, 7, 81, 44], [12, 3, 8, 61]]


class Shelf:
    """Keys and values, with room for 32 rows.

    Attributes:
        rows: [2, sequences, 32, 16].
        used: Rows that were written.
        stored: How they are given back.
    """

    def __init__(self, sequences, stored=None):
        self.rows, self.used, self.stored = torch.zeros(2, sequences, 32, 16), 0, stored

    def put(self, k, v):
        start, self.used = self.used, self.used + k.shape[1]
        self.rows[0, :, start : self.used], self.rows[1, :, start : self.used] = k, v
        rows = self.rows[:, :, : self.used]
        return rows if self.stored is None else rows.to(self.stored).float()


class Reader(nn.Module):
    """One layer that reads from a shelf, if it is given one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.emb, self.qkv, self.head = nn.Embedding(90, 16), nn.Linear(16, 48), nn.Linear(16, 90)

    def forward(self, ids, attention_mask=None, shelf=None):
        q, k, v = self.qkv(self.emb(ids)).chunk(3, -1)
        if shelf is not None:
            k, v = shelf.put(k, v)
        new, seq = q.shape[1], k.shape[1]
        seen = torch.ones(new, seq, dtype=torch.bool).tril(seq - new)
        if attention_mask is not None:
            seen = seen & (attention_mask[:, None] > 0)
        bias = torch.zeros(seen.shape).masked_fill(~seen, -1e4)
        return self.head(((q @ k.mT / 4 + bias).softmax(-1)) @ v)


@torch.no_grad()
def answer(model, stored=None):
    most = max(map(len, TEXTS))
    ids = torch.tensor([[0] * (most - len(one)) + one for one in TEXTS])
    mask = torch.tensor([[0] * (most - len(one)) + [1] * len(one) for one in TEXTS])
    shelf = Shelf(len(TEXTS), stored)
    for _ in range(4):
        ids = model(ids, mask, shelf)[:, -1:].argmax(-1)
        mask = torch.cat((mask, torch.ones_like(ids)), 1)


def test_a_cache_of_any_name_is_no_part_of_the_other_lane():
    model = Reader()
    assert kvtrace.check(model, run=lambda: answer(model)).verdict == EQUAL
    report = kvtrace.check(model, run=lambda: answer(model, torch.bfloat16))
    assert report.verdict == DIVERGED
    found = {(one.name, one.step, one.layer, one.sequences) for one in report.findings}
    assert found == {("DTYPE", 0, 0, ())}


def test_what_changed_during_a_call_was_written_to():
    def given():
        return {"a": Shelf(1), "b": [None], "c": torch.zeros(3), "d": {"e": torch.ones(2)}, "f": 3}

    before, after = given(), given()
    assert written_to(before, after) == set()
    after["a"].put(torch.ones(1, 1, 16), torch.ones(1, 1, 16))
    after["b"][0] = torch.zeros(1)
    after["d"]["e"].add_(1)
    after["f"] = 4
    assert written_to(before, after) == {"a", "b", "d"}


def test_a_list_that_grew_was_written_to():
    assert written_to({"a": []}, {"a": [torch.zeros(1)]}) == {"a"}
    assert written_to({"a": []}, {"b": [torch.zeros(1)]}) == set()


class Disk:
    """Keys and values in a file, which somebody's loop deletes when it is through."""

    def __init__(self, path):
        self.path, self.used = path, 0
        self.rows = np.memmap(path, np.float32, "w+", shape=(2, 1, 32, 16))

    def put(self, k, v):
        start, self.used = self.used, self.used + k.shape[1]
        for part, new in zip(self.rows, (k, v), strict=True):
            part[:, start : self.used] = new.numpy()
        self.rows.flush()
        there = np.memmap(self.path, np.float32, "r", shape=(2, 1, 32, 16))
        return torch.from_numpy(np.array(there[:, :, : self.used]))


class Childless(nn.Module):
    """All weights are its own; no module is in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        for name, rows in (("emb", 90), ("q", 16), ("k", 16), ("v", 16)):
            self.register_buffer(name, torch.randn(rows, 16) / 4)

    def forward(self, ids, shelf=None):
        x = self.emb[ids]
        q, k, v = x @ self.q, x @ self.k, x @ self.v
        if shelf is not None:
            k, v = shelf.put(k, v)
        new, seq = q.shape[1], k.shape[1]
        seen = torch.ones(new, seq, dtype=torch.bool).tril(seq - new)
        weights = (q @ k.mT / 4).masked_fill(~seen, float("-inf")).softmax(-1)
        return (x + weights @ v) @ self.emb.T


@pytest.mark.parametrize("ambient", [False, True])
def test_a_cache_in_a_file_that_is_gone_is_left_out_where_the_tokens_run_again(ambient, tmp_path):
    model, disk = Childless(), Disk(tmp_path / "rows")
    watched = [] if ambient else [model]
    with torch.no_grad(), kvtrace.record(*watched, tmp_path / "a.kvt"):
        for span in (slice(0, 6), slice(6, 7), slice(7, 8)):
            model(torch.tensor([[5, 9, 30, 7, 81, 44, 3, 8]])[:, span], disk)
        (tmp_path / "rows").unlink()
    assert check(kvtrace.open(tmp_path / "a.kvt")).verdict == EQUAL
