"""Cache classes of one's own: buffers handed back whole, copies, rows rounded anew."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL
from verify.bugs import llama

PROMPT = torch.tensor([[5, 9, 30, 7, 21, 14, 2, 11]])
ROOM = 24
"""Slots of a buffer."""
NEW = 5
"""Tokens that are decoded one by one."""


class Buffer(CacheLayerMixin):
    """Hands back all slots; the mask hides those that no token has been written to."""

    is_compileable, is_sliding, off, length = True, False, 0, 0

    def lazy_initialization(self, keys, values):
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = (
            x.new_zeros(*x.shape[:2], ROOM, x.shape[3]) for x in (keys, values)
        )

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        new = keys.shape[2]
        first = self.length + (self.off if new == 1 else 0)
        self.keys[:, :, first : first + new] = keys
        self.values[:, :, first : first + new] = values
        self.length += new
        return self.keys, self.values

    def get_seq_length(self):
        return self.length

    def get_max_length(self):
        return ROOM

    def get_mask_sizes(self, query_length):
        return ROOM, 0


class Late(Buffer):
    off = 1


class Appending(DynamicLayer):
    """What transformers' own does, in words of one's own."""

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys = torch.cat((self.keys, keys), 2)
        self.values = torch.cat((self.values, values), 2)
        return self.keys, self.values


def cache_of(layer, model):
    cache = DynamicCache()
    cache.layers = [layer() for _ in range(model.config.num_hidden_layers)]
    return cache


@torch.no_grad()
def decode(model, ids, cache):
    for _ in range(1 + NEW):
        ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


@pytest.mark.parametrize("sequences", [1, 2])
def test_a_buffer_that_is_handed_back_whole_is_seen_as_far_as_the_mask_shows(sequences):
    model = llama()
    ids = torch.cat((PROMPT, PROMPT.flip(1)))[:sequences]
    report = kvtrace.check(model, run=lambda: decode(model, ids, cache_of(Buffer, model)))
    assert report.verdict == EQUAL, report


def test_a_row_written_one_slot_late_into_such_a_buffer_is_named():
    model = llama()
    report = kvtrace.check(model, run=lambda: decode(model, PROMPT, cache_of(Late, model)))
    assert report.verdict == DIVERGED
    assert (report.findings[0].name, report.findings[0].step) == ("WRITE-POSITION", 1)


def test_a_copy_of_a_cache_of_ones_own_goes_on_with_its_text(tmp_path):
    model = llama()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "run.kvt"):
        prefix = cache_of(Appending, model)
        model(PROMPT, past_key_values=prefix, use_cache=True)
        for question in ([[3, 8, 40]], [[12, 6]]):
            decode(model, torch.tensor(question), copy.deepcopy(prefix))
    trace = kvtrace.open(tmp_path / "run.kvt")
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 11]
    report = kvtrace.check(tmp_path / "run.kvt")
    assert report.verdict == EQUAL, report


class Rounding(nn.Module):
    """Keeps its rows inside, in 8 bits that are chosen anew for all of them at every step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.qkv, self.kept = nn.Linear(32, 96), None

    def forward(self, ids, use_cache=False):
        q, k, v = self.qkv(self.tokens(ids)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if use_cache and self.kept is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kept, (k, v), strict=True))
        if use_cache:
            self.kept = [(x * 127 / x.abs().max()).round() / 127 * x.abs().max() for x in (k, v)]
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.head(y.transpose(1, 2).flatten(2))


def test_a_prompt_read_twice_is_two_texts_though_the_cache_rounds_rows_alike(tmp_path):
    model = Rounding().eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "run.kvt"):
        for _ in range(2):
            model.kept, ids = None, PROMPT
            for _ in range(1 + NEW):
                ids = model(ids, use_cache=True)[:, -1:].argmax(-1)
    trace = kvtrace.open(tmp_path / "run.kvt")
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3, 4, None, 6, 7, 8, 9, 10]
