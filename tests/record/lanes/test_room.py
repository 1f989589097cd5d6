"""Models that keep their newest rows alone, in a cache inside of them, in a single pass too."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.lanes.given.embedded import along
from kvtrace.record.lanes.paths import Node, Path


class Rolling(nn.Module):
    """Keeps its newest eight rows; its keys know no positions.

    Attributes:
        lost: Its steps of one token forget the oldest row from so many rows on.
    """

    def __init__(self, lost=99):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)
        self.held, self.lost = None, lost

    def forward(self, x):
        q, k, v = self.qkv(self.embed(x))[:, None].chunk(3, -1)
        if self.held is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.held, (k, v), strict=True))
            if k.shape[2] >= self.lost:
                k, v = k[:, :, 1:], v[:, :, 1:]
        k, v = k[:, :, -8:], v[:, :, -8:]
        self.held = (k, v)
        new, rows = q.shape[2], k.shape[2]
        seen = torch.ones(new, rows, dtype=torch.bool).tril(rows - new)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)[:, 0])


def run(model, path, prompt=5, steps=7, **options):
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 17, 11, 8, 7, 12]])[:, : prompt + steps]
    with torch.no_grad():
        model.qkv.weight.mul_(4)
    with torch.no_grad(), kvtrace.record(model, path, keep_rows=True, **options):
        for start, end in ((0, prompt), *((n, n + 1) for n in range(prompt, prompt + steps))):
            model(tokens[:, start:end])
    return check(kvtrace.open(path))


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_a_model_that_drops_rows_by_itself_is_compared_up_to_its_room(recompute, tmp_path):
    report = run(Rolling(), tmp_path / "a.kvt", recompute=recompute)
    assert (report.findings, report.verdict) == ((), "could not check")
    assert report.reason.startswith("4 of 8 steps were compared and are equal within rounding")
    assert report.reason.count("the model drops older rows by itself") == 1


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_a_prompt_beyond_the_room_does_not_make_a_model_look_ahead(recompute, tmp_path):
    report = run(Rolling(), tmp_path / "a.kvt", prompt=10, steps=4, recompute=recompute)
    assert (report.findings, report.verdict) == ((), "could not check")
    assert report.reason.startswith("1 of 5 steps were compared and are equal within rounding")
    assert "no pass over more than 10 tells what its steps should equal" in report.reason


def test_what_is_lost_before_the_room_is_full_is_a_bug(tmp_path):
    report = run(Rolling(lost=7), tmp_path / "a.kvt")
    assert [one.name for one in report.findings] == ["EVICTED-EARLY"]
    assert report.findings[0].step == 2


def test_a_text_within_the_room_is_compared_whole(tmp_path):
    assert run(Rolling(), tmp_path / "a.kvt", steps=3).verdict == "equal within rounding"


class Positions(nn.Module):
    """Knows nine positions, and holds the last one for the steps beyond.

    Attributes:
        wrong: The step from which on it counts one position too many.
    """

    def __init__(self, wrong=99):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(20, 8), nn.Embedding(9, 8)
        self.qkv, self.head, self.wrong = nn.Linear(8, 24), nn.Linear(8, 20), wrong

    def forward(self, x, cache=None):
        past = 0 if cache is None or not cache else cache[0].shape[2]
        start = min(past + (past >= self.wrong), 8)
        places = self.place(torch.arange(start, start + x.shape[1]))
        q, k, v = self.qkv(self.embed(x) + places)[:, None].chunk(3, -1)
        if cache is not None:
            if past:
                k, v = (torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True))
            cache[:] = [k, v]
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past == 0)
        return self.head(y[:, 0])


def run_beyond(model, path, steps=9, **options):
    tokens, cache = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 17, 11, 8, 7, 12]]), []
    with torch.no_grad(), kvtrace.record(model, path, keep_rows=True, **options):
        for start, end in ((0, 5), *((n, n + 1) for n in range(5, 5 + steps))):
            model(tokens[:, start:end], cache)
    return check(kvtrace.open(path))


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_steps_beyond_the_longest_text_do_not_keep_earlier_ones_from_being_compared(
    recompute, tmp_path
):
    report = run_beyond(Positions(), tmp_path / "a.kvt", recompute=recompute)
    assert (report.findings, report.verdict) == ((), "could not check")
    assert report.reason.startswith("5 of 10 steps were compared and are equal within rounding")
    assert "step 5 is the first that was not" in report.reason
    assert "index out of range" in report.reason


def test_a_bug_before_the_longest_text_is_named_though_steps_go_on_beyond_it(tmp_path):
    report = run_beyond(Positions(wrong=6), tmp_path / "a.kvt")
    assert (report.findings[0].name, report.findings[0].step) == ("POSITION-EMBEDDING", 2)


def test_rows_that_were_given_along_a_text_end_where_it_is_cut():
    path = Path([7, 8], nodes=[Node(0, 0, 0, 3), Node(1, 0, 5, 8)])
    rows = along([path], {0: torch.ones(1, 3), 1: torch.full((1, 3), 2.0)})
    assert rows.tolist() == [[1.0, 1.0]]
