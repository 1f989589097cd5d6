"""Static caches of somebody's whose count of rows is what is wrong: the rows tell better."""

import torch
from transformers.cache_utils import Cache, StaticLayer

import kvtrace
from kvtrace.analysis.checks import EQUAL, check
from verify import bugs

IDS = torch.tensor([[5, 9, 30, 7, 81, 44]])


class Standing(StaticLayer):
    """Its pointer stands still after the prompt."""

    def update(self, keys, values, *args, **more):
        first = not self.is_initialized
        out = super().update(keys, values, *args, **more)
        if not first:
            self.cumulative_length.sub_(keys.shape[2])
        return out


class Shared(StaticLayer):
    """All layers share one pointer."""

    pointer = None

    def lazy_initialization(self, keys, values):
        super().lazy_initialization(keys, values)
        type(self).pointer = self.cumulative_length if self.pointer is None else self.pointer
        self.cumulative_length = self.pointer


class Right(StaticLayer):
    """Somebody's own, and nothing is wrong with it."""


def run(layer, path, *, told=False):
    model = bugs.llama()
    cache, ids = Cache(layers=[layer(max_cache_len=24) for _ in range(2)]), IDS
    with torch.no_grad(), kvtrace.record(model, path):
        for start in (0, 6, 7, 8):
            places = torch.arange(start, start + ids.shape[1])[None] if told else None
            out = model(ids, past_key_values=cache, position_ids=places)
            ids = out.logits[:, -1:].argmax(-1)
    return kvtrace.open(path)


def first(trace):
    found = check(trace).findings[0]
    return found.name, found.step, found.layer


def test_a_row_beyond_the_count_of_its_cache_was_attended_to(tmp_path):
    trace = run(Standing, tmp_path / "a.kvt", told=True)
    assert trace.cache(1, 0).slots.tolist() == list(range(7))
    assert first(trace) == ("ROW-OVERWRITTEN", 2, 0)


def test_a_pointer_that_stands_writes_each_row_over_the_one_before(tmp_path):
    assert first(run(Standing, tmp_path / "a.kvt")) == ("ROW-OVERWRITTEN", 2, 0)


def test_a_count_that_other_layers_raised_adds_no_rows(tmp_path):
    Shared.pointer = None
    trace = run(Shared, tmp_path / "a.kvt")
    assert trace.cache(0, 0).slots.tolist() == list(range(6))
    assert first(trace) == ("WRITE-POSITION", 0, 1)


def test_a_count_that_is_right_is_believed(tmp_path):
    trace = run(Right, tmp_path / "a.kvt")
    assert trace.cache(3, 1).slots.tolist() == list(range(9))
    assert check(trace).verdict == EQUAL
