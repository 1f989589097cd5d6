"""Masks of a left-padded batch that a caller makes for each call: they hide its padding, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.lanes.given.seen import seen_in

IDS = torch.tensor([[0, 0, 3, 7, 11, 4], [1, 2, 3, 4, 5, 6], [0, 8, 3, 9, 5, 6]])
PADS = (2, 0, 1)


def places(new, seq):
    return torch.arange(seq), torch.arange(seq - new, seq)[:, None]


def alone(new, seq, pads):
    """Padding sees itself alone."""
    keys, own = places(new, seq)
    shown = (keys <= own) & (keys >= torch.tensor(pads)[:, None, None])
    return shown | (keys == own)


def together(new, seq, pads):
    """Padding sees padding."""
    keys, own = places(new, seq)
    pads = torch.tensor(pads)[:, None, None]
    return (keys <= own) & ((keys < pads) == (own < pads))


def window(new, seq, pads):
    keys, own = places(new, seq)
    return together(new, seq, pads) & (keys > own - 3)


def everything(new, seq, pads):
    """Padding sees all there is, which is as good as nothing."""
    own = places(new, seq)[1]
    return alone(new, seq, pads) | (own < torch.tensor(pads)[:, None, None]).expand(-1, -1, seq)


def added(shown, value=-torch.inf):
    return torch.zeros(shown.shape).masked_fill(~shown, value)


FORMS = {
    "booleans": lambda shown: shown,
    "numbers": added,
    "whole numbers": lambda shown: shown.long()[:, None],
    "of four axes": lambda shown: added(shown, torch.finfo().min)[:, None],
    "of heads": lambda shown: added(shown)[:, None].expand(-1, 2, -1, -1),
    "of sequences times heads": lambda shown: added(shown).repeat_interleave(2, 0),
}


class Model(nn.Module):
    """Takes its cache along."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.head = nn.Linear(16, 20)

    def forward(self, ids, mask=None, position_ids=None, past=None):
        x, kept = self.embed(ids), []
        if position_ids is not None:
            x = x + self.places(position_ids)
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if past is not None:
                k, v = (torch.cat(two, 2) for two in zip(past[number], (k, v), strict=True))
            kept.append((k, v))
            weights = (q @ k.mT / 8**0.5 + self.bias(mask, q, k)).softmax(-1)
            x = x + (weights @ v).transpose(1, 2).flatten(2)
        return self.head(x), kept

    def bias(self, mask, q, k):
        if mask is None:
            new, seq = q.shape[2], k.shape[2]
            return added(torch.ones(new, seq, dtype=torch.bool).tril(seq - new))
        mask = mask if mask.is_floating_point() else added(mask != 0)
        if mask.dim() == 3:
            mask = mask.unflatten(0, (len(q), -1))
        return mask


@torch.no_grad()
def told(model, masks, pads=PADS, *, ids=IDS, counted=True, spoil=None):
    """A text, its first tokens at once and three more one by one."""
    past, pads_ = None, torch.tensor(pads)[:, None]
    for step in range(4):
        end = 6 + step
        new = 6 if step == 0 else 1
        given = {"position_ids": (places(new, end)[1].T - pads_).clamp(min=0)} if counted else {}
        logits, past = model(ids, mask=masks(new, end, pads), past=past, **given)
        if step == spoil:
            past[1][0][1, :, 3] += 1
        ids = logits[:, -1:].argmax(-1)


def report(path):
    trace = kvtrace.open(path)
    found = check(trace)
    return found.verdict, found.steps, [one.name for one in found.findings]


@pytest.mark.parametrize("rule", [alone, together, window, everything])
@pytest.mark.parametrize("form", FORMS)
def test_a_mask_of_a_padded_batch_grows_with_the_tokens(form, rule, tmp_path):
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        told(model, lambda *size: FORMS[form](rule(*size)))
    assert report(tmp_path / "a.kvt") == ("equal within rounding", 4, [])


@pytest.mark.parametrize("counted", [True, False])
def test_no_padding_is_shown_to_a_model_that_may_be_called_without_a_mask(counted, tmp_path):
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        told(model, together, counted=counted)
    assert report(tmp_path / "a.kvt") == ("equal within rounding", 4, [])


def test_each_text_has_the_padding_it_was_given(tmp_path):
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for pads in (PADS, (0, 3, 0), (0, 0, 0)):
            told(model, together, pads)
    assert report(tmp_path / "a.kvt") == ("equal within rounding", 12, [])


def test_a_row_that_changes_behind_a_mask_is_found(tmp_path):
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        told(model, together, spoil=1)
    assert report(tmp_path / "a.kvt") == ("diverged", 4, ["OLD-ROWS-CHANGED"])


def test_a_bias_that_tells_keys_apart_is_no_table_of_who_sees_whom():
    keys, own = places(6, 6)
    slopes = torch.tensor([0.5, 0.25])[:, None, None]
    alibi = torch.where(keys <= own, slopes * (keys - own), -torch.inf)
    assert seen_in(alibi, 6) is None
    assert seen_in(torch.zeros(2, 6, 6), 6) is None
    assert seen_in(torch.ones(6, 6, dtype=torch.bool), 6) is None


def test_a_table_tells_padding_from_a_window():
    (one,) = seen_in(window(6, 6, (1,)), 6)
    assert (one.padding, one.window) == (1, 3)
    (one,) = seen_in(alone(6, 6, (5,)), 6)
    assert (one.padding, one.window) == (5, None)
