"""Models that are given all tokens at each step and take the new ones themselves."""

import torch
from torch import nn

import kvtrace


class Slicing(nn.Module):
    """One layer that keeps its keys and values, and computes the last token only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x, cache=None):
        start = 0 if cache is None else x.shape[1] - 1
        q, k, v = self.qkv(self.embed(x[:, start:]))[:, None].chunk(3, -1)
        if cache is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True))
        mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()[start:]
        scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf)
        return self.head((scores.softmax(-1) @ v)[:, 0]), (k, v)


def test_all_tokens_in_and_one_row_computed_is_a_step_that_reads_the_cache(tmp_path):
    model, tokens = Slicing(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        cache = None
        for end in (4, 5, 6):
            _, cache = model(tokens[:, :end], cache)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.tokens for step in trace] == [((3, 1, 4, 1),), ((5,),), ((9,),)]
    assert [step.positions for step in trace] == [((0, 1, 2, 3),), ((4,),), ((5,),)]
    assert [step.parent for step in trace] == [None, 0, 1]
    assert trace.meta.cache_layers[0].kind == "dynamic"
    assert [trace.cache_step(n, 0).length_before for n in range(3)] == [0, 4, 5]
    assert (trace.cache(2, 0).keys == cache[0][0].numpy()).all()
    assert not any((trace.compared(n).beyond > 0).any() for n in range(3))


class Remembering(Slicing):
    """As it, but it keeps the output of every token, too: it has logits for all of them."""

    def forward(self, x, cache=None):
        logits, rows = super().forward(x, None if cache is None else cache[:2])
        whole = logits if cache is None else torch.cat((cache[2], logits), 1)
        return whole, (*rows, whole)


def test_logits_of_kept_outputs_do_not_make_a_step_of_one_row_one_of_all(tmp_path):
    model, tokens = Remembering(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        cache = None
        for end in (4, 5, 6):
            logits, cache = model(tokens[:, :end], cache)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.tokens for step in trace] == [((3, 1, 4, 1),), ((5,),), ((9,),)]
    assert trace.step(2).top[0].ids[0] == int(logits[0, -1].argmax())
    assert not any((trace.compared(n).beyond > 0).any() for n in range(3))
