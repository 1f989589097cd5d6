"""A step whose tokens are each the likeliest after the one before took in drafts that stay."""

import torch
from torch import nn

import kvtrace
from kvtrace.analysis.course import course

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


class Small(nn.Module):
    """One layer of attention whose cache is handed on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, ids, past=None):
        q, k, v = self.mix(self.embed(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        seen = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]) > 0
        out = nn.functional.scaled_dot_product_attention(q, k, v, seen)
        return self.head(out.transpose(1, 2).flatten(2)), (k, v)


@torch.no_grad()
def likeliest(model, ids, count):
    """What a naive loop without a cache goes on with."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids)[0][:, -1:].argmax(-1)), 1)
    return ids


def recorded(path, *parts):
    model = Small()
    with torch.no_grad(), kvtrace.record(model, path):
        past = None
        for part in parts:
            _, past = model(part, past)
    return kvtrace.open(path)


def test_drafts_that_are_all_what_the_model_would_choose_are_a_decode_step(tmp_path):
    text = likeliest(Small(), PROMPT, 10)
    trace = recorded(tmp_path / "a.kvt", PROMPT, text[:, 5:9], text[:, 9:13], text[:, 13:14])
    assert course(trace) == "prefill of 5, 3 decode steps"


def test_tokens_that_the_model_would_not_choose_are_more_of_the_prompt(tmp_path):
    other = torch.tensor([[9, 2, 6, 5]])
    assert bool((likeliest(Small(), PROMPT, 4)[:, 5:] != other).any())
    trace = recorded(tmp_path / "a.kvt", PROMPT, other)
    assert course(trace) == "chunked prefill 5+4"


def test_two_tokens_of_which_one_was_to_be_expected_are_more_of_the_prompt(tmp_path):
    text = likeliest(Small(), PROMPT, 2)
    assert course(recorded(tmp_path / "a.kvt", PROMPT, text[:, 5:])) == "chunked prefill 5+2"
