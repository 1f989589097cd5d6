"""Batches in which a sequence is given the padding mask of another one."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from kvtrace import record
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.files import open_trace
from verify.bugs import llama

PROMPTS = torch.tensor([[20, 21, 22, 23, 24, 25], [0, 0, 30, 31, 32, 33], [0, 0, 0, 40, 41, 42]])


def batch(path, *, rows, steps=4):
    """Left-padded prompts; `rows` gives the rows of the mask that a decode step is given."""
    model = llama()
    cache, tokens, mask = DynamicCache(config=model.config), PROMPTS, (PROMPTS > 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), record(model, path, referee=True):
        for step in range(steps):
            given = mask[rows(cache, step)] if step else mask
            out = model(tokens, attention_mask=given, position_ids=positions, past_key_values=cache)
            tokens = out.logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
            if step == 1:
                cache.batch_select_indices(torch.tensor([0, 2]))
                tokens, positions = tokens[[0, 2]], positions[[0, 2]]
    return check(open_trace(path))


def test_rows_that_leave_a_batch_take_their_mask_along(tmp_path):
    def right(cache, step):
        return [0, 2] if step > 1 else [0, 1, 2]

    assert batch(tmp_path / "run.kvt", rows=right).verdict == EQUAL


def test_the_mask_of_a_row_that_left_hides_no_window(tmp_path):
    def stale(cache, step):
        return [0, 1] if step > 1 else [0, 1, 2]

    found = batch(tmp_path / "run.kvt", rows=stale).findings[0]
    assert (found.name, found.step, found.tensor) == ("PAD-VISIBLE", 2, "mask")


def test_masks_in_another_order_are_told_of_each_row(tmp_path):
    def turned(cache, step):
        return [2, 0] if step > 1 else [2, 0, 1]

    findings = batch(tmp_path / "run.kvt", rows=turned).findings
    named = {one.name: one for one in findings if one.step == 1}
    assert named["MASK"].sequences == (0,)
    assert "lacks the oldest 3: 0, 1, 2" in named["MASK"].evidence
    assert "the padding of another sequence is hidden here" in named["MASK"].evidence
    assert named["PAD-VISIBLE"].sequences == (1, 2)


class MaskedLater(nn.Module):
    """Only what goes on with a cache looks at the mask: a prompt sees its own padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.out = nn.Embedding(60, 32), nn.Linear(32, 96), nn.Linear(32, 60)

    def forward(self, input_ids, attention_mask=None, past=None):
        q, k, v = self.qkv(self.embed(input_ids)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            shown = attention_mask[:, None, None].bool()
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)


def test_padding_that_is_hidden_with_a_cache_alone_is_its_own(tmp_path):
    model, tokens, past = MaskedLater(), PROMPTS[:2], None
    mask = (tokens > 0).long()
    with torch.no_grad(), record(model, tmp_path / "run.kvt"):
        for _ in range(3):
            logits, past = model(tokens, attention_mask=mask, past=past)
            tokens = logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
    found = check(open_trace(tmp_path / "run.kvt")).findings[0]

    assert (found.name, found.step, found.sequences) == ("MASK", 1, (1,))
    assert "its own padding is hidden here, and is not without the cache" in found.evidence
