"""Objects that Python did not make are copied as they say themselves, or not at all."""

import random

import numpy as np
import pytest
import torch

from kvtrace.record.lanes.as_it_was.private import Copier
from kvtrace.record.lanes.as_it_was.tensors import Tensors


class Named(int):
    pass


@pytest.mark.parametrize("value", [np.float32(0.125), np.int64(7), Named(3), np.float64(0.1)])
def test_numbers_of_other_kinds_keep_their_value(value):
    copied = Copier(Tensors([])).of({"scale": value})["scale"]
    assert (copied, type(copied)) == (value, type(value))


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: random.Random(5), lambda one: one.random()),
        (lambda: np.random.default_rng(5), lambda one: one.random()),
        (
            lambda: torch.Generator().manual_seed(5),
            lambda one: torch.rand(1, generator=one).item(),
        ),
    ],
)
def test_a_random_generator_goes_on_alike_and_leaves_the_first_alone(make, draw):
    mine, fresh = make(), make()
    draw(mine), draw(fresh)
    copied = Copier(Tensors([])).of([mine])[0]
    drawn = [draw(copied) for _ in range(3)]
    assert drawn == [draw(fresh) for _ in range(3)]
    assert [draw(mine) for _ in range(3)] == drawn


def test_what_can_not_be_copied_is_shared():
    store = torch.distributed.HashStore()
    assert Copier(Tensors([])).of([store])[0] is store
