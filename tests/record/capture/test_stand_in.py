"""What is replaced while watching looks like what it stands for, to whoever reads it."""

import copy
import functools
import inspect
import pickle
import typing
from types import FunctionType, MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicLayer
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import AttentionInterface

import kvtrace
from kvtrace.record.capture.replaced.stand_in import MethodStandIn, StandIn, as_written


class Base(nn.Module):
    def forward(self, ids, cache, start):
        x = self.table(ids)
        scores = (x @ x.transpose(-1, -2)).tril()
        return self.mix(F.softmax(scores, -1) @ x)


class Model(Base):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.mix = nn.Linear(8, 8)

    def forward(
        self, ids: torch.Tensor, cache: list | None = None, *, start: int = 0
    ) -> torch.Tensor:
        """Rows attend to rows."""
        return super().forward(ids, cache, start)


IDS = torch.tensor([[3, 1, 4, 1, 5]])
PLACES = [torch, F, torch.Tensor, nn.Module, Model, Base]
PLACES += [GenerationMixin, Cache, DynamicLayer, AttentionInterface]


@pytest.fixture(params=["a model", "whatever runs"])
def watched(request, tmp_path):
    """A model that is being recorded, and has run."""
    model = Model().eval()
    which = (model,) if request.param == "a model" else ()
    with kvtrace.record(*which, tmp_path / "a.kvt"), torch.no_grad():
        model(IDS)
        yield model


ORIGINAL = {kind: vars(kind)["forward"] for kind in (Base, Model)}


def test_a_watched_forward_is_read_as_it_was_written(watched):
    was, now = ORIGINAL[Model], Model.forward
    assert isinstance(now, StandIn)
    for name in ("code", "defaults", "kwdefaults", "closure", "globals", "annotations", "doc"):
        assert getattr(now, f"__{name}__") is getattr(was, f"__{name}__")
    assert vars(now) is vars(was)
    assert not hasattr(now, "__wrapped__")
    assert inspect.signature(now) == inspect.signature(was)
    assert inspect.getsource(now) == inspect.getsource(was)
    assert inspect.getfullargspec(now) == inspect.getfullargspec(was)
    assert typing.get_type_hints(now) == typing.get_type_hints(was)
    assert repr(now) == repr(was)
    assert inspect.isfunction(now)
    assert "ids" in watched.forward.__code__.co_varnames
    assert list(inspect.signature(watched.forward).parameters) == ["ids", "cache", "start"]


def test_a_watched_forward_equals_the_one_it_stands_for(watched):
    was = ORIGINAL[Model]
    assert was == Model.forward
    assert Model.forward == was
    assert {was: 1}[Model.forward] == 1
    assert watched.forward == MethodType(was, watched)
    assert watched.forward.__func__ is Model.forward
    assert Model.forward != ORIGINAL[Base]


def test_a_watched_forward_is_pickled_by_its_name_and_copied_as_itself(watched):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(Model.forward, protocol)) is Model.forward
    assert copy.deepcopy(Model.forward) is Model.forward
    copied = copy.deepcopy(watched)
    assert torch.equal(copied.forward(IDS), watched.forward(IDS))


def test_what_a_program_makes_of_a_watched_forward_runs(watched):
    @functools.wraps(Model.forward)
    def mine(self, *args, **kwargs):
        return Model.forward(self, *args, **kwargs)

    expected = watched(IDS)
    bound = functools.partial(Model.forward, watched)
    assert bound.func is Model.forward
    assert torch.equal(bound(IDS), expected)
    assert torch.equal(mine(watched, IDS), expected)
    assert inspect.signature(mine) == inspect.signature(ORIGINAL[Model])


def test_what_is_set_on_a_watched_forward_stays(watched):
    Model.forward.mark = 1
    try:
        assert ORIGINAL[Model].mark == 1
        assert Model.forward.mark == 1
    finally:
        del Model.forward.mark
    assert not hasattr(ORIGINAL[Model], "mark")


def test_a_forward_that_a_module_has_of_its_own_is_read_as_it_was(tmp_path):
    model = Model().eval()
    bound = model.forward
    model.forward = functools.partial(bound, start=1)
    own = model.forward
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        model(IDS)
        assert isinstance(model.forward, functools.partial)
        assert (model.forward.func, model.forward.keywords) == (own.func, own.keywords)
        assert copy.copy(model).forward is own
    assert model.forward is own


def test_all_functions_that_are_replaced_look_like_what_they_stand_for(tmp_path):
    before = {place: dict(vars(place)) for place in PLACES}
    odd = []
    with kvtrace.record(tmp_path / "a.kvt"), torch.no_grad():
        model = Model().eval()
        for _ in range(20):
            model(IDS)
        for place, were in before.items():
            for name, now in vars(place).items():
                was = were.get(name)
                if was is now or not isinstance(now, FunctionType | StandIn):
                    continue
                original = getattr(now, "__name__", name) if was is None else was
                if not isinstance(now, StandIn) or (
                    was is not None and as_written(now) != original
                ):
                    odd.append((place, name))
        kinds = {
            type(vars(place)[name]) for place, name in ((Model, "forward"), (nn.Module, "__call__"))
        }
    assert not odd
    assert kinds == {MethodStandIn}
    assert all(vars(place)[name] is one for place in PLACES for name, one in before[place].items())
