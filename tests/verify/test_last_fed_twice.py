"""Loops of people's own, run by the check with a prompt that it knows: what they feed after it."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL

PROMPT = [5, 9, 30, 7, 22, 41]


class Small(nn.Module):
    """One attention with positions, a cache that is passed, and a loop that a test gives."""

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.embed, self.place = nn.Embedding(64, 32), nn.Embedding(128, 32)
            self.qkv, self.head = nn.Linear(32, 96), nn.Linear(32, 64)

    def forward(self, idx, past=None):
        start = 0 if past is None else past[0].shape[2]
        hidden = self.embed(idx) + self.place(torch.arange(start, start + idx.shape[1]))
        q, k, v = self.qkv(hidden).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        shown = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(start)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        return self.head(hidden + seen.transpose(1, 2).flatten(2)), (k, v)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        return self.loop(self, idx, max_new_tokens)


def likeliest(logits):
    return logits[:, -1:].argmax(-1)


def twice(model, ids, count):
    logits, past = model(ids)
    for _ in range(count):
        logits, past = model(ids[:, -1:], past)
        ids = torch.cat((ids, likeliest(logits)), 1)
    return ids


def singly_and_twice(model, ids, count):
    past = None
    for token in ids[0]:
        logits, past = model(token.view(1, 1), past)
    for _ in range(count):
        logits, past = model(ids[:, -1:], past)
        ids = torch.cat((ids, likeliest(logits)), 1)
    return ids


def held_back(model, ids, count):
    past = model(ids[:, :-1])[1]
    for _ in range(count):
        logits, past = model(ids[:, -1:], past)
        ids = torch.cat((ids, likeliest(logits)), 1)
    return ids


def cropped(model, ids, count):
    past = tuple(one[:, :, :-1] for one in model(ids)[1])
    for _ in range(count):
        logits, past = model(ids[:, -1:], past)
        ids = torch.cat((ids, likeliest(logits)), 1)
    return ids


def chosen(model, ids, count):
    logits, past = model(ids)
    for _ in range(count):
        ids = torch.cat((ids, likeliest(logits)), 1)
        logits, past = model(ids[:, -1:], past)
    return ids


def drawn(model, ids, count):
    logits, past = model(ids)
    for at in range(count):
        ids = torch.cat((ids, ids[:, -1:] if at == 0 else (likeliest(logits) + 1) % 64), 1)
        logits, past = model(ids[:, -1:], past)
    return ids


def checked(loop, prompt=PROMPT):
    return kvtrace.check(Small(loop), [prompt], new_tokens=4, ways=["own"])


@pytest.mark.parametrize("loop", [twice, singly_and_twice])
def test_a_loop_that_feeds_the_last_token_of_a_known_prompt_again_has_its_row_twice(loop):
    report = checked(loop)
    (found,) = report.findings
    assert (report.verdict, found.name, found.layer) == (DIVERGED, "DUPLICATE-ROWS", 0)
    assert "all 8 tokens of the prompt had been fed" in found.evidence
    assert not any("last token is fed again" in one for one in report.caveats)


@pytest.mark.parametrize("loop", [held_back, cropped, chosen, drawn])
@pytest.mark.parametrize("prompt", [PROMPT, [5, 9, 30, 7, 22, 41, 41, 41]])
def test_a_loop_that_feeds_it_once_or_computes_it_anew_or_draws_it_is_silent(loop, prompt):
    report = checked(loop, prompt)
    own = report.trials[-1]
    assert (report.verdict, own.report.verdict, own.report.findings) == (EQUAL, EQUAL, ())
    assert not any("fed again" in one for one in own.report.caveats)
