"""Caches that keep some rows by a rule, the same in all heads, and slips that lose rows."""

from functools import partial

import pytest
import torch
from torch import nn

import kvtrace

PROMPT = [5, 9, 30, 7, 41, 2, 44, 18, 3, 26, 37, 12]
STEPS = 8


class Budgeted(nn.Module):
    """Two layers whose cache keeps the rows that a rule names.

    Attributes:
        rule: From the weights of a layer, [heads, new, rows], and the tokens so far to the rows
            that it keeps.
    """

    def __init__(self, rule):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.places = nn.Embedding(48, 32), nn.Embedding(64, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.head, self.rule = nn.Linear(32, 48), rule

    def forward(self, ids, past=None, start=0):
        x = self.embed(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        kept = []
        for layer, qkv in enumerate(self.qkv):
            q, k, v = qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            if past is not None:
                k, v = (torch.cat(pair, 2) for pair in zip(past[layer], (k, v), strict=True))
            hidden = torch.ones(q.shape[2], k.shape[2]).triu(k.shape[2] - q.shape[2] + 1).bool()
            weights = (q @ k.mT * 8**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
            x = x + (weights @ v).transpose(1, 2).flatten(2)
            rows = self.rule(weights[0], start + ids.shape[1])
            kept.append((k[:, :, rows], v[:, :, rows]))
        return self.head(x), kept


def scored(room, weights, at):
    """The rows that the newest queries look at most, of all heads together."""
    return weights[:, -4:].mean((0, 1)).topk(min(room, weights.shape[2])).indices.sort().values


def first_and_newest(room, weights, at):
    count = weights.shape[2]
    return [*range(2), *range(count - room + 2, count)] if count > room else [*range(count)]


def newest(weights, at):
    return [*range(weights.shape[2])][-8:]


def second(weights, at):
    """Each step loses one, beginning with the prompt: nothing was full."""
    return [row for row in range(weights.shape[2]) if row != 1]


def once(lost, weights, at):
    return [row for row in range(weights.shape[2]) if row not in lost or at != 15]


def checked(rule):
    model = Budgeted(rule).eval()
    with torch.no_grad():
        for qkv in model.qkv:
            qkv.weight.mul_(3)

    def decode():
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            _, past = model(torch.tensor([PROMPT]))
            for step in range(STEPS):
                new = torch.randint(48, (1, 1), generator=generator)
                _, past = model(new, past, len(PROMPT) + step)

    return kvtrace.check(model, run=decode)


@pytest.mark.parametrize(
    ("rule", "step", "how"),
    [
        (partial(scored, 8), 1, "cache layer 0 chooses"),
        (partial(scored, 14), 4, "to drop, one after another"),
        (partial(first_and_newest, 8), 1, "at every length it keeps the first 2 rows"),
        (partial(first_and_newest, 14), 4, "at every length it keeps the first 2 rows"),
    ],
)
def test_rows_that_a_rule_chose_for_all_heads_are_told_and_are_no_bug(rule, step, how):
    report = checked(rule)
    assert [(one.name, one.step) for one in report.findings] == [("EVICTED-BY-CHOICE", step)]
    assert how in report.findings[0].evidence
    assert report.verdict == "could not check"


@pytest.mark.parametrize(
    "rule",
    [
        newest,
        second,
        partial(once, [4]),
        partial(once, [3, 4, 5, 6]),
        partial(once, [1, 3, 5, 7]),
        partial(once, [2, 3, 4, 5, 10, 11]),
    ],
)
def test_rows_that_are_lost_in_a_simple_order_are_evicted_early(rule):
    report = checked(rule)
    assert report.findings[0].name == "EVICTED-EARLY"
    assert report.verdict == "diverged"


class Unplaced(nn.Module):
    """Nothing tells its rows their places, and its cache keeps the newest six."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(16, 32), nn.Linear(32, 96), nn.Linear(32, 16)

    def forward(self, ids, past=None):
        q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.head(y.transpose(1, 2).flatten(2)), (k[:, :, -6:], v[:, :, -6:])


@pytest.mark.parametrize("text", [[1, 1, 1, 1, 1, 1, 2, 1], [5, 6, 5, 5, 6, 6, 5, 6, 7]])
def test_which_of_equal_rows_a_cache_dropped_shows_no_choice(text):
    model = Unplaced().eval()

    def decode():
        with torch.no_grad():
            _, past = model(torch.tensor([text]))
            for token in text[:7]:
                _, past = model(torch.tensor([[token]]), past)

    found = kvtrace.check(model, run=decode).findings
    assert "EVICTED-BY-CHOICE" not in [one.name for one in found]
    assert found[0].name == "EVICTED-EARLY"
