"""Masks over what is read beside the text: they say nothing of its own tokens, which grow."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.record.lanes.given.extend import CannotExtendError, Extension

SOURCE = 7


class Attending(nn.Module):
    """Attention whose mask is an argument, and whose cache is a dictionary that comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, read, mask, cache=None):
        q, k, v = self.q(x), self.k(read), self.v(read)
        if cache is not None:
            k, v = torch.cat([cache["key"], k], 1), torch.cat([cache["value"], v], 1)
        heads = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in (q, k, v))
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        return x + out.transpose(1, 2).flatten(2), {"key": k, "value": v}


class Translator(nn.Module):
    """A decoder that is given an encoder's rows, and both masks, with each step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(40, 16), nn.Embedding(32, 16)
        self.self_attn, self.cross_attn, self.head = Attending(), Attending(), nn.Linear(16, 40)

    def forward(self, tgt, encoder_output, cross_mask, tgt_mask, caches=None):
        start = 0 if caches is None else caches["key"].shape[1]
        x = self.embed(tgt) + self.places(torch.arange(start, start + tgt.shape[1]))
        x, caches = self.self_attn(x, x, tgt_mask, caches)
        x, _ = self.cross_attn(x, encoder_output, cross_mask)
        return self.head(x), caches


def translated(path, prompt, rows, padding):
    torch.manual_seed(0)
    model = Translator().eval()
    read, ids = torch.randn(rows, SOURCE, 16), torch.randint(40, (rows, prompt))
    shown = torch.ones(rows, 1, 1, SOURCE, dtype=torch.bool)
    shown[-1, ..., SOURCE - padding :] = False
    mask = torch.ones(1, 1, prompt, prompt, dtype=torch.bool).tril()
    with torch.no_grad(), kvtrace.record(model, path):
        out, caches = model(ids, read, shown.expand(-1, 1, prompt, -1), mask)
        for length in range(prompt + 1, prompt + 5):
            now = out[:, -1:].argmax(-1)
            mask = torch.ones(1, 1, 1, length, dtype=torch.bool)
            out, caches = model(now, read, shown, mask, caches)
    return kvtrace.open(path)


@pytest.mark.parametrize(("rows", "padding"), [(1, 0), (1, 2), (2, 3)])
@pytest.mark.parametrize("prompt", [1, 3])
def test_a_decoder_that_is_given_both_masks_is_compared(prompt, rows, padding, tmp_path):
    trace = translated(tmp_path / "a.kvt", prompt, rows, padding)

    report = check(trace)
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert trace.visible(4, 1, sequence=rows - 1).sum() == SOURCE - padding


def test_a_mask_over_rows_beside_the_text_stays_the_same_for_each_token_more():
    one = Extension(3, rows=5, most=1, tables=False, paths=(), beside=frozenset({6}))
    mask = torch.tensor([1, 1, 1, 1, 0, 0]).bool().expand(1, 1, 3, 6)

    longer = one.extended("cross_mask", mask, opened=False)

    assert longer.tolist() == [[[[True] * 4 + [False] * 2] * 5]]


def test_a_mask_that_tells_a_texts_tokens_apart_is_none_of_what_is_beside_it():
    one = Extension(3, rows=5, most=1, tables=False, paths=(), beside=frozenset({6}))
    mask = torch.ones(1, 1, 3, 6)
    mask[..., 1, 2] = 0

    with pytest.raises(CannotExtendError, match="belongs to its tokens"):
        one.extended("cross_mask", mask, opened=False)


def test_a_single_token_that_is_shown_one_row_may_see_itself_in_a_buffer():
    one = Extension(1, rows=5, most=1, tables=False, paths=(), beside=frozenset({6}))

    with pytest.raises(CannotExtendError, match="belongs to its tokens"):
        one.extended("cross_mask", torch.arange(6)[None, None, None] < 1, opened=False)
