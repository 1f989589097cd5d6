"""What lies in the memory of a parameter, and what lies where one was."""

import torch
from torch import nn

import kvtrace
from kvtrace.record.flow.marks.owned import Owned


def test_a_view_of_a_parameter_lies_in_its_memory():
    weight, owned = nn.Parameter(torch.ones(4)), Owned()
    owned.add([weight])
    assert owned.has(weight[:2])
    assert not owned.has(torch.ones(4))


def test_a_parameter_that_moved_owns_the_new_memory_and_not_the_old():
    weight, owned = nn.Parameter(torch.ones(4)), Owned()
    owned.add([weight])
    old = weight.data
    weight.data = torch.zeros(4)
    assert not owned.has(old)
    assert owned.has(weight.data[1:])


def test_the_memory_of_a_parameter_that_is_gone_is_nobodys():
    weight, owned = nn.Parameter(torch.ones(4)), Owned()
    owned.add([weight])
    old = weight.data
    del weight
    assert not owned.has(old)


class NormalisedOnce(nn.Module):
    """Normalises its head in the first forward; its queries lie where the head was."""

    def __init__(self):
        super().__init__()
        self.emb, self.qkv, self.head = nn.Embedding(40, 16), nn.Linear(16, 48), nn.Linear(16, 40)
        self.spare = None

    def forward(self, idx, past=None):
        q, k, v = self.qkv(self.emb(idx)).chunk(3, -1)
        if self.spare is not None:
            q = self.spare.flatten()[: q.numel()].view(q.shape).copy_(q)
        if past is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        rows = torch.softmax(q @ k.mT / 4, -1) @ v
        if self.spare is None:
            self.spare = self.head.weight.data
            self.head.weight.data = nn.functional.normalize(self.spare)
        return self.head(rows), (k, v)


def test_attention_is_seen_where_a_parameter_was(tmp_path):
    torch.manual_seed(0)
    model, past, ids = NormalisedOnce().eval(), None, torch.tensor([[1, 2, 3]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        for _ in range(4):
            logits, past = model(ids, past)
            ids = logits[:, -1:].argmax(-1)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [[list(part.sites) for part in step.sites] for step in trace] == [[[0]]] * 4
