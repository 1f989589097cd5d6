"""Layers that attend to copies of another layer's rows: what is held once is counted once."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.cost.memory import cache_memory
from kvtrace.analysis.nature import rows_are

ROW = 2 * 2 * 8 * 4
"""Bytes of a K row and its V row: two kv heads of eight features."""


class Layers(nn.Module):
    """Layers with four heads, two of keys and values; `owner` says whose rows each attends to.

    Every call repeats the rows for its heads, so that no two layers read the same memory.
    """

    def __init__(self, owner, *, all_keep=False, stacked=False):
        torch.manual_seed(0)
        super().__init__()
        self.owner, self.all_keep, self.stacked = owner, all_keep, stacked
        self.embed, self.place = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.q = nn.ModuleList(nn.Linear(32, 32) for _ in owner)
        self.kv = nn.ModuleList(nn.Linear(32, 32) for _ in owner)
        self.head = nn.Linear(32, 50)

    def forward(self, ids, past=None):
        count = 0 if past is None else past[0][0].shape[2]
        x = self.embed(ids) + self.place.weight[count : count + ids.shape[1]]
        made, kept, read = {}, [], {}
        for layer, owner in enumerate(self.owner):
            if owner == layer:
                made[layer] = self.kv[layer](x).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
            if owner == layer or self.all_keep:
                rows = made[owner].clone()
                rows = (
                    rows
                    if past is None
                    else torch.cat((torch.stack(tuple(past[len(kept)])), rows), 3)
                )
                kept.append(tuple(rows))
                read[layer] = rows
            x = x + self.attend(layer, x, read[layer if layer in read else owner])
        return self.head(x), torch.stack(
            [torch.stack(one) for one in kept]
        ) if self.stacked else kept

    def attend(self, layer, x, rows):
        q = self.q[layer](x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = rows.repeat_interleave(2, 2)
        mask = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2])
        scores = (q @ k.mT * 8**-0.5).masked_fill(mask == 0, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Buffers(Layers):
    """The same with room for sixteen rows of each layer that makes any, in one tensor."""

    def __init__(self, owner):
        super().__init__(owner)
        places = (2, len(set(owner)), 1, 2, 16, 8)
        self.register_buffer("rows", torch.zeros(places), persistent=False)
        self.count = 0

    def forward(self, ids, past=None):
        here, own = slice(self.count, self.count + ids.shape[1]), sorted(set(self.owner))
        x = self.embed(ids) + self.place.weight[here]
        for layer, owner in enumerate(self.owner):
            if owner == layer:
                made = self.kv[layer](x).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
                self.rows[:, own.index(layer), :, :, here] = made
            x = x + self.attend(layer, x, self.rows[:, own.index(owner), :, :, : here.stop])
        self.count = here.stop
        return self.head(x), None


class Equal(Layers):
    """Every layer keeps rows of its own, which are those of the others, bit for bit."""

    def __init__(self, owner):
        super().__init__(owner)
        self.kv = nn.ModuleList([self.kv[0]] * len(owner))

    def attend(self, layer, x, rows):
        return super().attend(layer, x, rows) * 0


def recorded(model, path):
    with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
        past, ids = None, torch.tensor([[5, 9, 30, 7]])
        for _ in range(5):
            logits, past = model(ids, past)
            ids = logits[:, -1:].argmax(-1)
    return kvtrace.open(path)


BESIDE, FAR = (0, 0, 2, 2), (0, 1, 0, 1)


@pytest.mark.parametrize("owner", [BESIDE, FAR], ids=["beside", "far"])
@pytest.mark.parametrize("stacked", [False, True], ids=["apart", "stacked"])
def test_rows_that_layers_copy_from_others_take_no_memory_of_their_own(owner, stacked, tmp_path):
    trace = recorded(Layers(owner, stacked=stacked), tmp_path / "a.kvt")
    memory = cache_memory(trace, 4)
    assert memory.measured_bytes == memory.held_bytes == 2 * 8 * ROW
    assert memory.token_bytes == 2 * ROW
    assert memory.unshared == 4 * 8 * ROW
    copied = [site for site in range(4) if rows_are(trace, site) == "copied from another layer"]
    assert copied == [layer for layer in range(4) if owner[layer] != layer]


@pytest.mark.parametrize("owner", [BESIDE, FAR], ids=["beside", "far"])
@pytest.mark.parametrize("stacked", [False, True], ids=["apart", "stacked"])
def test_copies_that_every_layer_keeps_are_counted_each(owner, stacked, tmp_path):
    trace = recorded(Layers(owner, all_keep=True, stacked=stacked), tmp_path / "a.kvt")
    memory = cache_memory(trace, 4)
    assert memory.measured_bytes == memory.held_bytes == memory.unshared == 4 * 8 * ROW
    assert memory.token_bytes == 4 * ROW


def test_copies_of_rows_in_a_buffer_take_no_memory_of_their_own(tmp_path):
    memory = cache_memory(recorded(Buffers(FAR), tmp_path / "a.kvt"), 4)
    assert memory.held_bytes == 2 * 8 * ROW
    assert memory.measured_bytes == 2 * 16 * ROW


def test_layers_whose_own_rows_are_equal_are_counted_each(tmp_path):
    memory = cache_memory(recorded(Equal((0, 1, 2, 3)), tmp_path / "a.kvt"), 4)
    assert memory.measured_bytes == memory.held_bytes == 4 * 8 * ROW
