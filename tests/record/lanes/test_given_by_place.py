"""What a program gives a model by place is given by place again: to hooks, and to `*args`."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import kvtrace
from builders.custom_drives import build, ids, through_the_cache
from kvtrace.analysis.checks import DIVERGED, EQUAL, check
from kvtrace.record.capture.tokens.inputs import named, places_of
from kvtrace.record.lanes.given.first_call import positional


class Any(nn.Module):
    """A wrapper as people write it: whatever it is given goes to the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


def decoded(model, path, change=lambda cache: cache):
    tokens, cache = ids(10), None
    with torch.no_grad(), kvtrace.record(model, path):
        for first, end in ((0, 6), (6, 7), (7, 8)):
            _, cache = model(tokens[:, first:end], cache)
            cache = change(cache)
    return check(kvtrace.open(path))


@pytest.mark.parametrize("wrap", [Any, lambda model: Any(Any(model))])
def test_a_forward_that_takes_anything_is_computed_again(wrap, tmp_path):
    assert decoded(wrap(build("tuple_cat")), tmp_path / "a.kvt").verdict == EQUAL


def test_what_is_wrong_behind_a_forward_that_takes_anything_is_found(tmp_path):
    def doubled(cache):
        return [(2 * k, v) for k, v in cache]

    report = decoded(Any(build("tuple_cat")), tmp_path / "a.kvt", doubled)
    assert report.verdict == DIVERGED


def test_a_hook_that_reads_the_first_argument_finds_it(tmp_path):
    model = build("tuple_cat")
    model.register_forward_pre_hook(lambda _, args: (args[0].clamp(max=200), *args[1:]))
    with kvtrace.record(model, tmp_path / "a.kvt"):
        through_the_cache("tuple_cat", model, ids(10), 6)
    assert check(kvtrace.open(tmp_path / "a.kvt")).verdict == EQUAL


def test_what_follows_in_star_args_has_a_name_by_its_place():
    class Takes(nn.Module):
        def forward(self, first, *more, flag=False, **others):
            """Nothing."""

    model = Takes()
    parameters = inspect.signature(model.forward).parameters
    given = named(model, (1, 2, 3), {"flag": True, "other": 4})
    assert given == {"first": 1, "more": 2, "more[1]": 3, "flag": True, "other": 4}
    assert places_of(parameters)[:3] == ("first", "more", "more[1]")
    assert positional(parameters, given) == ([1, 2, 3], {"flag": True, "other": 4})
    assert positional(parameters, {"first": 1, "flag": True}) == ([], {"first": 1, "flag": True})
    assert positional(parameters, {"first": 1}, ("first",)) == ([1], {})
