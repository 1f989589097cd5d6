"""Models that are told how many rows to read, as those over pages of a pool are."""

import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import EQUAL, UNCHECKED, check

PROMPT = [5, 9, 30, 7, 81, 44, 9, 12, 3]
BLOCK = 4


class Paged(nn.Module):
    """One layer over a pool of rows that the caller holds, read by a table of blocks.

    Attributes:
        pool: Keys and values, [2, rows, 16].
        table: Blocks of the text, [blocks].
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.emb, self.qkv, self.head = nn.Embedding(90, 16), nn.Linear(16, 48), nn.Linear(16, 90)

    def forward(self, ids, pos, table, length, pool):
        q, k, v = self.qkv(self.emb(ids) + pos[:, None] / 20).chunk(3, -1)
        slots = table[pos // BLOCK] * BLOCK + pos % BLOCK
        pool[0, slots], pool[1, slots] = k, v
        rows = (table[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:length]
        hidden = torch.arange(len(rows)) > pos[:, None]
        scores = (q @ pool[0, rows].T / 4).masked_fill(hidden, float("-inf"))
        return self.head(scores.softmax(-1) @ pool[1, rows])


@torch.no_grad()
def answer(model, blocks, steps=4, said=int):
    pool, ids, done = torch.zeros(2, 64, 16), list(PROMPT), 0
    for _ in range(steps):
        table = torch.arange(blocks or -(-len(ids) // BLOCK))
        logits = model(
            torch.tensor(ids[done:]), torch.arange(done, len(ids)), table, said(len(ids)), pool
        )
        done = len(ids)
        ids.append(int(logits[-1].argmax()))


def judged(tmp_path, blocks):
    model = Paged()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        answer(model, blocks)
    return check(kvtrace.open(tmp_path / "a.kvt"))


def test_a_count_of_rows_to_read_grows_with_the_tokens(tmp_path):
    report = judged(tmp_path, blocks=8)
    assert (report.verdict, report.findings, report.steps) == (EQUAL, (), 4), report.reason


class Budgeted(nn.Module):
    """Reads no more rows of its pool than it is told, by a name that says nothing."""

    def __init__(self):
        super().__init__()
        self.paged = Paged()

    def forward(self, ids, pos, table, upto, pool):
        return self.paged(ids, pos, table, int(upto), pool)


def test_a_count_of_any_name_is_what_the_last_step_was_given(tmp_path):
    model = Budgeted()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        answer(model, 8)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings, report.steps) == (EQUAL, (), 4), report.reason


def test_a_pass_that_read_fewer_rows_than_it_has_tokens_is_no_reference(tmp_path):
    model = Budgeted()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        answer(model, 8, said=float)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "read fewer rows than tokens" in report.reason


class Packed(nn.Module):
    """Texts stand one behind the other; how long each is must be said, in a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.emb, self.qkv, self.head = nn.Embedding(90, 16), nn.Linear(16, 48), nn.Linear(16, 90)

    def forward(self, input_ids, seqlens, cache=None):
        q, k, v = self.qkv(self.emb(input_ids)).chunk(3, -1)
        out, end = [], 0
        for text, new in enumerate(seqlens):
            own, end = slice(end, end + new), end + new
            keys, values = k[own], v[own]
            if cache is not None:
                old = cache.get(text, (keys[:0], values[:0]))
                keys, values = torch.cat((old[0], keys)), torch.cat((old[1], values))
                cache[text] = keys, values
            hidden = torch.full((new, len(keys)), -torch.inf).triu(len(keys) - new + 1)
            out.append((q[own] @ keys.T / 4 + hidden).softmax(-1) @ values)
        return self.head(torch.cat(out))


def test_the_length_of_the_only_text_in_a_list_grows_with_the_tokens():
    model, cache = Packed(), {}

    @torch.no_grad()
    def run():
        ids = torch.tensor(PROMPT)
        for _ in range(4):
            ids = model(ids, [len(ids)], cache)[-1:].argmax(-1)

    report = kvtrace.check(model, run=run)

    assert report.ok, report
