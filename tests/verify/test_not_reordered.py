"""Beam searches that take tokens over from one another, with their rows or without."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL
from kvtrace_fixtures.custom import tuple_cat

PROMPT = [7, 22, 48, 3, 31, 15]


def made():
    torch.manual_seed(3)
    model = tuple_cat.GPT()
    for weight in model.parameters():
        weight.data *= 2 if weight.dim() > 1 else 1
    return model.eval()


@torch.no_grad()
def search(model, *, reorder, beams=3, steps=8):
    """A beam search as people write it."""
    logits, past = model(torch.tensor([PROMPT] * beams))
    scores, tokens = logits[0, -1].log_softmax(-1).topk(beams)
    for _ in range(steps):
        logits, past = model(tokens[:, None], past)
        total = scores[:, None] + logits[:, -1].log_softmax(-1)
        scores, flat = total.view(-1).topk(beams)
        source, tokens = flat // logits.shape[-1], flat % logits.shape[-1]
        if reorder:
            past = [(k[source], v[source]) for k, v in past]


@torch.no_grad()
def guided(model, steps=8):
    """Two texts are fed the same token, which either of them alone would not have chosen."""
    logits, past = model(torch.tensor([PROMPT, PROMPT[::-1]]))
    for _ in range(steps):
        token = (3 * logits[0, -1] - 2 * logits[1, -1]).argmax()
        logits, past = model(token.expand(2, 1), past)


@torch.no_grad()
def sampled(model, seed, steps=12):
    """Several texts, each with a token of its own distribution."""
    torch.manual_seed(seed)
    logits, past = model(torch.tensor([PROMPT] * 4))
    for _ in range(steps):
        logits, past = model(torch.multinomial(logits[:, -1].softmax(-1), 1), past)


def test_beams_whose_rows_are_not_reordered_hold_those_of_other_texts():
    model = made()
    report = kvtrace.check(model, run=lambda: search(model, reorder=False))
    assert (report.verdict, report.findings[0].name) == (DIVERGED, "WRONG-BATCH-ROW")
    assert "tokens were reordered, rows were not" in report.findings[0].evidence


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beams_that_are_reordered_hold_their_own_rows(beams):
    model = made()
    report = kvtrace.check(model, run=lambda: search(model, reorder=True, beams=beams))
    assert (report.verdict, report.findings) == (EQUAL, ())


def test_guided_texts_hold_their_own_rows():
    model = made()
    report = kvtrace.check(model, run=lambda: guided(model))
    assert (report.verdict, report.findings) == (EQUAL, ())


@pytest.mark.parametrize("seed", range(3))
def test_sampled_texts_hold_their_own_rows(seed):
    model = made()
    report = kvtrace.check(model, run=lambda: sampled(model, seed))
    assert (report.verdict, report.findings) == (EQUAL, ())


@torch.no_grad()
def ended(model, left):
    """Three texts, each with its likeliest tokens; the second ends, and some rows are left."""
    logits, past = model(torch.tensor([PROMPT, PROMPT[::-1], [50, 9, 9, 41, 2, 6]]))
    for step in range(6):
        tokens = logits[:, -1:].argmax(-1)
        if step == 3:
            tokens, past = tokens[[0, 2]], [(k[left], v[left]) for k, v in past]
        logits, past = model(tokens, past)


def test_a_batch_that_keeps_the_rows_of_the_text_that_ended_is_told():
    model = made()
    report = kvtrace.check(model, run=lambda: ended(model, [0, 1]))
    (found,) = report.findings
    assert (found.name, found.step, found.sequences) == ("WRONG-BATCH-ROW", 4, (1,))
    assert "one of the likeliest after sequence 2 and not after its own" in found.evidence


def test_a_batch_that_keeps_rows_in_another_order_than_its_tokens_is_told():
    model = made()
    report = kvtrace.check(model, run=lambda: ended(model, [1, 0]))
    found = report.findings[0]
    assert (found.name, found.step, found.sequences) == ("WRONG-BATCH-ROW", 4, (0, 1))
    assert "holds sequence 1's rows: rows were not reordered as tokens were" in found.evidence


class Padded(nn.Module):
    """Hides padding at the left, and counts none of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(60, 32), nn.Embedding(40, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 60)

    def forward(self, ids, attention_mask, past=None):
        new = ids.shape[1]
        places = (attention_mask.cumsum(-1) - 1).clamp_min(0)[:, -new:]
        x = self.tokens(ids) + self.places(places)
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        seen = torch.ones(new, k.shape[2], dtype=torch.bool).tril(k.shape[2] - new)
        seen = seen & attention_mask[:, None, None].bool()
        scores = (q @ k.mT / 8**0.5).masked_fill(~seen, torch.finfo(k.dtype).min)
        return self.out(x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), (k, v)


@torch.no_grad()
def turned(model):
    """Two texts, one behind padding; after three tokens the rows of both change places."""
    ids, past = torch.tensor([[0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 9, 9]]), None
    mask = (ids > 0).long()
    for step in range(6):
        if step == 4:
            past = tuple(rows.flip(0) for rows in past)
        logits, past = model(ids, mask, past)
        ids, mask = logits[:, -1:].argmax(-1), torch.cat((mask, mask.new_ones(2, 1)), 1)


def test_rows_that_change_places_are_not_told_of_their_padding_as_well():
    model = Padded().eval()
    (found,) = kvtrace.check(model, run=lambda: turned(model)).findings
    assert (found.name, found.step, found.sequences) == ("WRONG-BATCH-ROW", 4, (0, 1))


def test_a_batch_that_drops_the_rows_of_the_text_that_ended_is_right():
    model = made()
    report = kvtrace.check(model, run=lambda: ended(model, [0, 2]))
    assert (report.verdict, report.findings) == (EQUAL, ())
