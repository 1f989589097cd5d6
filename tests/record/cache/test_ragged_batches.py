"""Batches that are put together anew at each step: what is behind the shorter texts is filling."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kvtrace

WIDTH, HEADS, VOCAB = 32, 4, 64
PROMPTS = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [1, 2, 3, 14, 15])


class Ragged(nn.Module):
    """Every text keeps its own rows; a call gathers them, with zeros behind the shorter ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(VOCAB, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids, kept, context_lens):
        return self.attend(ids, kept, self.counted(context_lens))

    def counted(self, ends):
        return ends

    def attend(self, ids, kept, ends):
        new = ids.shape[1]
        places = torch.tensor(ends)[:, None] - new + torch.arange(new)
        x = self.tokens(ids) + self.places(places)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        for rows, key, value in zip(kept, k, v, strict=True):
            rows[:] = [torch.cat((*rows[:1], key), 1), torch.cat((*rows[1:], value), 1)]
        longest = max(rows[0].shape[1] for rows in kept)
        shape = (len(kept), HEADS, longest, WIDTH // HEADS)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        shown = torch.zeros(len(kept), 1, new, longest, dtype=torch.bool)
        for b, rows in enumerate(kept):
            held = rows[0].shape[1]
            keys[b, :, :held], values[b, :, :held] = rows
            shown[b, 0, :, :held] = torch.ones(new, held, dtype=torch.bool).tril(held - new)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=shown)
        return self.out(y.transpose(1, 2).flatten(2))


class Untold(Ragged):
    """No argument says how many rows a text has."""

    def forward(self, ids, kept):
        new = ids.shape[1]
        return self.attend(ids, kept, [(rows[0].shape[1] if rows else 0) + new for rows in kept])


class CountsTogether(Ragged):
    """Every text is given the positions of the longest."""

    def counted(self, ends):
        return [max(ends)] * len(ends)


@torch.no_grad()
def serve(model, prompts, steps=4):
    """A prompt joins those that are decoded at each step."""
    kept, texts = [], []

    def call(which, ids):
        rows = [kept[one] for one in which]
        ends = [(one[0].shape[1] if one else 0) + ids.shape[1] for one in rows]
        logits = model(ids, rows, *(() if isinstance(model, Untold) else (ends,)))
        for one, found in zip(which, logits, strict=True):
            texts[one].append(int(found[-1].argmax()))

    waiting = list(prompts)
    for _ in range(steps):
        if waiting:
            kept.append([])
            texts.append(waiting.pop(0).copy())
            call([len(kept) - 1], torch.tensor([texts[-1]]))
        call(range(len(kept)), torch.tensor([one[-1:] for one in texts]))
    return texts


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("kind", [Ragged, Untold])
def test_each_text_of_a_batch_that_is_filled_up_behind_goes_on_at_its_own_end(
    kind, order, tmp_path
):
    prompts = [PROMPTS[one] for one in order]
    with kvtrace.record(model := kind(), tmp_path / "a.kvt"):
        texts = serve(model, prompts)
    trace = kvtrace.open(tmp_path / "a.kvt")

    report = kvtrace.check(tmp_path / "a.kvt")
    assert report.ok, report
    lengths = [len(one) for one in prompts]
    # a prompt and a step with those before it, three times; then a step of all
    assert trace.step(3).positions == ((lengths[0] + 1,), (lengths[1],))
    assert trace.step(5).positions == ((lengths[0] + 2,), (lengths[1] + 1,), (lengths[2],))
    assert trace.step(6).positions == ((lengths[0] + 3,), (lengths[1] + 2,), (lengths[2] + 1,))
    assert texts == serve(kind(), prompts)


def test_a_text_that_is_given_the_positions_of_a_longer_one_is_found(tmp_path):
    with kvtrace.record(model := CountsTogether(), tmp_path / "a.kvt"):
        serve(model, PROMPTS[:2])
    (found, *_) = kvtrace.check(tmp_path / "a.kvt").findings

    assert (found.name, found.step, found.sequences) == ("POSITION-EMBEDDING", 3, (1,))
