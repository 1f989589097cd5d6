"""Prompts that run one by one and are decoded as one batch: each sequence goes on with its own."""

import pytest
import torch
from torch import nn

import kvtrace
from builders.attentions import Model, matmul, token_ids
from kvtrace.analysis.checks import check
from kvtrace.trace import Tensor


def joined(caches):
    return [tuple(torch.cat(rows) for rows in zip(*layer, strict=True)) for layer in caches]


def decode(model, path, *, prompts=3, spoil=False):
    """Prompts one by one, then all of them together; the caches after each step."""
    ids, live = token_ids(prompts, 9), []
    with kvtrace.record(model, path):
        caches = [model(row[None, :6])[1] for row in ids]
        past = joined(zip(*caches, strict=True))
        for new in ids[:, 6:].split(1, 1):
            if spoil:
                past = [tuple(rows.clone() for rows in layer) for layer in past]
                past[1][0][1, 2] += 1
            _, past = model(new, past)
            live.append(past)
    return kvtrace.open(path), live


@torch.no_grad()
def test_each_sequence_of_a_joined_batch_goes_on_with_the_rows_of_its_own_prompt(tmp_path):
    trace, lived = decode(Model(matmul), tmp_path / "a.kvt")
    found = check(trace)
    assert found.ok
    assert found.findings == ()
    assert found.steps == len(trace) == 6
    for step, caches in zip(list(trace)[3:], lived, strict=True):
        group = step.cache_step(1)
        assert (group.rewritten, group.rows) == (0, 1)
        for sequence, row in enumerate(step.positions):
            assert row == (step.number + 3,)
            for tensor, live in zip((Tensor.KEYS, Tensor.VALUES), caches[1], strict=True):
                rows = [
                    torch.tensor(trace.source.cells(1, tensor, run.cell, run.count, None))
                    for run in group.kept[sequence]
                ]
                assert torch.equal(torch.cat(rows, 1), live[sequence].transpose(0, 1))


@torch.no_grad()
def test_a_row_that_is_spoilt_while_a_batch_is_joined_is_found(tmp_path):
    trace, _ = decode(Model(matmul), tmp_path / "a.kvt", spoil=True)
    found = check(trace)
    assert not found.ok
    assert found.findings[0].step == 3
    assert found.findings[0].sequences == (1,)


@pytest.mark.parametrize("times", [2, 4])
@torch.no_grad()
def test_one_prompt_that_is_repeated_for_a_batch_is_no_joining(times, tmp_path):
    model, ids = Model(matmul), token_ids(1, 6)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        _, past = model(ids)
        past = [tuple(rows.repeat(times, 1, 1, 1) for rows in layer) for layer in past]
        model(token_ids(times, 1), past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(1).order == (0,) * times
    assert check(trace).ok


class Padded(nn.Module):
    """Keys and values of two layers as tuples, places and a mask as arguments."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(50, 16), nn.Embedding(40, 16)
        self.layers, self.head = (
            nn.ModuleList(nn.Linear(16, 48) for _ in range(2)),
            nn.Linear(16, 50),
        )

    def forward(self, ids, places, past=None, mask=None):
        x, kept = self.embed(ids) + self.places(places), []
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if past is not None:
                k, v = (torch.cat(two, 2) for two in zip(past[number], (k, v), strict=True))
            kept.append((k, v))
            shown = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(
                k.shape[2] - q.shape[2]
            )
            if mask is not None:
                shown = shown & mask[:, None, None]
            weights = (q @ k.mT / 8**0.5).masked_fill(~shown, -1e9).softmax(-1)
            x = x + (weights @ v).transpose(1, 2).flatten(2)
        return self.head(x), kept


def rows_apart(count):
    """Prompts that have no token in common at any place."""
    return (torch.arange(count)[:, None] * 4 + torch.arange(9) * 7) % 50


def decode_padded(path, lengths, side, *, before=1, hide=True, spoil=False, mode="once"):
    """Prompts one by one, with a step or more each; then all of them, the shorter ones padded."""
    model = Padded().eval()

    def filled(rows, width):
        more = rows.new_zeros(*rows.shape[:2], width - rows.shape[2], rows.shape[3])
        return torch.cat([more, rows] if side == "left" else [rows, more], 2)

    with kvtrace.record(model, path, recompute=mode):
        caches = []
        for row, length in zip(rows_apart(len(lengths)), lengths, strict=True):
            cache = model(row[None, :length], torch.arange(length)[None])[1]
            for more in range(before):
                cache = model(row[None, :1], torch.tensor([[length + more]]), cache)[1]
            caches.append(cache)
        rows = torch.tensor(lengths)[:, None] + before
        width = int(rows.max())
        past = [
            tuple(
                torch.cat([filled(one, width) for one in rows]) for rows in zip(*layer, strict=True)
            )
            for layer in zip(*caches, strict=True)
        ]
        if spoil:
            past[1][0][1, :, 3] += 1
        slots = torch.arange(width)
        mask = slots >= width - rows if side == "left" else slots < rows
        mask = mask if hide else torch.ones_like(mask)
        for step in range(3):
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            _, past = model((token_ids(len(rows), 1) + step) % 50, rows + step, past, mask)
    return kvtrace.open(path)


@pytest.mark.parametrize("mode", ["once", "each"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(7, 4, 6), (4, 7)])
@torch.no_grad()
def test_prompts_of_unequal_length_may_be_padded_to_a_batch(lengths, side, mode, tmp_path):
    trace = decode_padded(tmp_path / "a.kvt", lengths, side, mode=mode)
    found = check(trace)
    assert (found.ok, found.findings, found.steps) == (True, (), len(trace))
    step = trace.step(2 * len(lengths))
    assert step.positions == tuple((length + 1,) for length in lengths)
    assert not [note for note in trace.notes if "rotated" in note.text]


@torch.no_grad()
def test_padding_of_a_joined_batch_that_is_not_hidden_is_found(tmp_path):
    found = check(decode_padded(tmp_path / "a.kvt", (7, 4, 6), "left", hide=False)).findings[0]
    assert (found.name, found.step, found.sequences) == ("ZERO-GAP", 6, (1, 2))


@torch.no_grad()
def test_a_row_that_is_spoilt_while_a_batch_is_padded_is_found(tmp_path):
    found = check(decode_padded(tmp_path / "a.kvt", (7, 4, 6), "left", spoil=True)).findings[0]
    assert found.step == 6


@torch.no_grad()
def test_more_prompts_than_a_handful_may_be_joined(tmp_path):
    lengths = tuple(3 + n % 4 for n in range(12))
    found = check(decode_padded(tmp_path / "a.kvt", lengths, "left"))
    assert (found.ok, found.findings) == (True, ())


class Slots(nn.Module):
    """Requests in slots of one buffer, each as long as it is; those of a call may be any."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tokens, self.places = nn.Embedding(40, 32), nn.Embedding(32, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 40)

    def forward(self, ids, which, rows, lengths):
        end = lengths[which][:, None] + torch.arange(1, ids.shape[1] + 1)
        q, k, v = self.qkv(self.tokens(ids) + self.places(end - 1)).split(32, -1)
        rows[which[:, None], end - 1] = torch.stack([k, v], 2)
        k, v = rows[which, : int(end.max())].unbind(2)
        hidden = torch.arange(k.shape[1]) >= end[..., None]
        weights = (q @ k.mT / 4).masked_fill(hidden, -1e30).softmax(-1)
        lengths[which] = end[:, -1]
        return self.out(weights @ v)


def served(model, prompts, *, late=0):
    """Each request joins those that are being decoded, until it has four tokens."""
    rows, lengths = torch.zeros(3, 24, 2, 32), torch.zeros(3, dtype=torch.long)
    waiting, said = list(enumerate(prompts)), {}
    while waiting or any(len(tokens) < 4 for tokens in said.values()):
        if waiting:
            slot, ids = waiting.pop(0)
            out = model(torch.tensor([ids]), torch.tensor([slot]), rows, lengths)
            said[slot] = [int(out[0, -1].argmax())]
        active = [slot for slot, tokens in said.items() if len(tokens) < 4]
        ids = torch.tensor([[said[slot][-1]] for slot in active])
        out = model(ids, torch.tensor(active), rows, lengths)
        lengths[1] -= late * (1 in active)
        for slot, logits in zip(active, out, strict=True):
            said[slot].append(int(logits[-1].argmax()))


@pytest.mark.parametrize("late", [0, 1])
@torch.no_grad()
def test_a_batch_that_others_join_while_it_is_decoded_keeps_the_newest_row_of_each(late, tmp_path):
    prompts = [[5, 9, 30, 7, 21, 2], [14, 18, 3], [26, 37, 12, 30, 8]]
    with kvtrace.record(model := Slots(), tmp_path / "a.kvt"):
        served(model, prompts, late=late)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert check(trace).ok == (not late)
    if not late:
        assert [step.positions for step in trace][3] == ((7,), (3,))
        assert [step.positions for step in trace][5] == ((8,), (4,), (5,))
