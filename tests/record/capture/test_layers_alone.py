"""A layer that is called on its own, with rows instead of token ids, is recorded and compared."""

import pytest
import torch
from torch import nn

import kvtrace
from builders.custom_drives import build, ids, through_the_cache


class Layer(nn.Module):
    """Attention over rows that are handed in, its cache a pair that comes back."""

    def __init__(self, masks_chunks=True):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.masks_chunks = masks_chunks

    def forward(self, query, key, value, past=None):
        q, k, v = (
            part(rows).unflatten(-1, (3, 8)).transpose(1, 2)
            for part, rows in ((self.q, query), (self.k, key), (self.v, value))
        )
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        seen = torch.ones(q.shape[2], k.shape[2])
        if self.masks_chunks or past is None:
            seen = seen.tril(k.shape[2] - q.shape[2])
        scores = q @ k.mT / 8**0.5
        out = scores.masked_fill(seen == 0, -torch.inf).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2), (k, v)


def fed(layer, sizes, sequences=1):
    """The layer over random rows, so many at a time."""
    past, out = None, []
    rows = torch.randn(sequences, sum(sizes), 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for part in rows.split(sizes, dim=1):
            made, past = layer(part, part, part, past)
            out.append(made)
    return out


@pytest.mark.parametrize("sequences", [1, 2])
def test_a_layer_alone_is_recorded_and_computed_again_from_its_rows(tmp_path, sequences):
    sizes = [5, 2, 1, 1, 1]
    plain = fed(Layer(), sizes, sequences)
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        seen = fed(Layer(), sizes, sequences)
    assert all(map(torch.equal, plain, seen))
    assert [(one.model, one.steps, one.texts) for one in recording.report.traces] == [
        ("Layer", 5, 1)
    ]
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.cache(4, 0).keys.shape == (3, 10, 8)
    assert all(trace.compared(number) is not None for number in trace.numbers)
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_what_a_layer_makes_of_its_rows_is_taken_for_no_logits(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):
        fed(Layer(), [4, 1])
    assert all(not step.top for step in kvtrace.open(tmp_path / "a.kvt"))


def test_a_bug_in_a_layer_alone_is_found():
    layer = Layer(masks_chunks=False)
    report = kvtrace.check(layer, run=lambda: fed(layer, [1, 4, 1]))
    assert [one.name for one in report.findings][:1] == ["MASK-FUTURE"]


def test_a_model_that_is_given_ids_takes_the_place_of_layers(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        fed(Layer(), [4, 1])
        through_the_cache("tuple_cat", build("tuple_cat"), ids(8), 2)
        fed(Layer(), [4, 1])
    assert [one.model for one in recording.report.traces] == ["GPT"]
    assert [one.name for one in tmp_path.iterdir()] == ["a.kvt"]
    assert kvtrace.open(tmp_path / "a.kvt").meta.model.name == "GPT"


def test_layers_that_do_not_attend_leave_nothing(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        for _ in range(6):
            nn.Sequential(nn.Linear(24, 24), nn.ReLU())(torch.randn(1, 4, 24))
        fed(Layer(), [4, 1])
    assert [one.model for one in recording.report.traces] == ["Layer"]
    assert recording.report.said == ()
