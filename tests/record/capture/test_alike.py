"""Steps like the one before are taken in as a whole, and say what every other step would say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from builders.tiny_models import tiny_model
from kvtrace.record.capture.alike import Later
from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.watch import Watch

Drive = Callable[[nn.Module, Any], None]


def _decoded(
    model: nn.Module, between: Callable[[int, DynamicCache], None] = lambda _, __: None
) -> list[Forward]:
    """Forwards of a prompt of 5 tokens and 8 decode steps; `between` is called after each."""
    seen: list[Forward] = []
    cache = DynamicCache()
    ids = torch.arange(5)[None]
    with torch.no_grad(), Watch(model, seen.append):
        for step in range(9):
            model(ids, past_key_values=cache, use_cache=True)
            ids = torch.tensor([[step + 3]])
            between(step, cache)
    return seen


def _together(seen: list[Forward]) -> list[int]:
    """Numbers of the forwards that were taken in as a whole."""
    return [one.number for one in seen if one.batch is not None]


def test_after_one_decode_step_the_others_are_taken_in_as_a_whole() -> None:
    assert _together(_decoded(tiny_model("gpt2"))) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rows_taken_together_are_those_of_the_single_calls(name: str) -> None:
    one = _decoded(tiny_model(name))[-1]
    assert one.batch is not None
    shapes = one.batch.pattern.each
    parts = (
        (one.batch.queries, [call.queries for call in one.calls]),
        (one.batch.output, [call.output for call in one.calls]),
        (one.batch.keys, [update.new_keys for update in one.updates]),
        (one.batch.values, [update.new_values for update in one.updates]),
    )
    for (whole, singles), shape in zip(parts, shapes, strict=True):
        assert singles[0].shape == shape
        assert torch.equal(whole.reshape(-1, *shape), torch.stack(singles))


def test_what_is_said_of_a_single_update_is_what_reading_it_says() -> None:
    whole = _decoded(tiny_model("gpt2"))[-1]
    touched = _decoded(tiny_model("gpt2"), lambda step, cache: _copy(cache) if step == 7 else None)[
        -1
    ]
    assert whole.batch is not None
    assert touched.batch is None
    for one, other in zip(whole.updates, touched.updates, strict=True):
        for name, value in one._asdict().items():
            expected = getattr(other, name)
            if isinstance(value, Tensor):
                assert torch.equal(value, expected), name
            elif name not in ("continuous", "earlier"):  # the other cache was touched
                assert value == expected, name


def _copy(cache: DynamicCache) -> None:
    """Equal rows in other memory, as somebody leaves them who edits a cache."""
    for layer in cache.layers:
        layer.keys = layer.keys.clone()


def _scale(cache: DynamicCache) -> None:
    cache.layers[1].values.mul_(2)


@pytest.mark.parametrize("edit", [_copy, _scale])
def test_a_cache_that_somebody_touched_is_looked_at_in_full(
    edit: Callable[[DynamicCache], None],
) -> None:
    seen = _decoded(tiny_model("gpt2"), lambda step, cache: edit(cache) if step == 4 else None)
    assert _together(seen) == [2, 3, 4, 6, 7, 8]


def test_rows_stay_as_they_were_when_the_model_changes_them_later() -> None:
    one = _decoded(tiny_model("gpt2"))[-1]
    assert one.batch is not None
    before = one.batch.keys.clone()
    for update in one.updates:
        update.new_keys.zero_()
    assert torch.equal(one.batch.keys, before)


def test_several_tokens_at_once_are_read_in_full() -> None:
    model, cache, seen = tiny_model("gpt2"), DynamicCache(), list[Forward]()
    with torch.no_grad(), Watch(model, seen.append):
        for ids in ([[1, 2, 3]], [[4]], [[5]], [[6, 7]], [[8]]):
            model(torch.tensor(ids), past_key_values=cache, use_cache=True)
    assert _together(seen) == [2, 4]


def test_another_cache_is_another_pattern() -> None:
    model, seen = tiny_model("gpt2"), list[Forward]()
    caches = [DynamicCache(), DynamicCache()]
    with torch.no_grad(), Watch(model, seen.append):
        for number in (0, 0, 0, 1, 1, 1, 0):
            model(torch.tensor([[number + 3]]), past_key_values=caches[number], use_cache=True)
    assert _together(seen) == [1, 2, 4, 5]


def test_things_made_later_are_made_once_and_only_when_asked_for() -> None:
    made: list[int] = []

    def make(place: int) -> int:
        made.append(place)
        return place * 10

    later = Later(4, make)
    assert (len(later), made) == (4, [])
    assert (later[2], later[-1], later[2]) == (20, 30, 20)
    assert made == [2, 3]
    assert list(later[1:3]) == [10, 20]
    assert list(later) == [0, 10, 20, 30]
